// SPDX-License-Identifier: Apache-2.0
//
// mosaic: a program whose address space is random and that knows what every
// byte of it must be, so that memory which a migration carried wrongly cannot
// stay unnoticed.
//
//   mosaic run [--seed 1] [--mib 16] [--dir /tmp] [--children 2] [--threads 2]
//              [--rate 2000] [--churn 40] [--forks 4]
//   mosaic ask [--dir /tmp] [--timeout-ms 60000]
//              verify | status | forgive | rate N | churn N | forks N
//
// `run` makes regions of every kind (see `plan`) with holes between them in an
// arena of its own, forks --children that share them copy-on-write, and lets
// --threads in every process change them: --rate pages a second are rewritten
// (some with what they held already, some by the kernel), --churn times a
// second pages are dropped, unmapped, mapped, protected, moved, grown, shrunk,
// and --forks times a second a child is forked that checks what it inherited,
// diverges, checks itself and ends. All are per process.
//
// The model: each page has an entry (who wrote it last, the how manieth time,
// its protection, whether there is a page at all), and what it must hold
// follows from seed, region, page and entry. Entries are memory too, and a
// consistent old state of everything would pass for a new one. So each change
// also moves a digest of all entries and a step number on, and these are kept
// a second time where no page is: in a pipe's buffer.
//
// Pages are checked at random all the time. `ask verify` has every process
// check every byte of everything, holes and protection included, and prints
// one line of JSON with the first wrong address if there is one; its exit
// status is 0 only when nothing was ever wrong. `forgive` is for testing this
// program itself. Sleeps are relative: an absolute one would be restarted with
// its old deadline on a host with another uptime.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef unsigned char byte;

enum { PAGE = 4096, WORDS = PAGE / 8, SLOTS = 64, PROCESSES_MAX = 8, THREADS_MAX = 8, REGIONS_MAX = 40 };
enum { HUGE_PAGES = 512, POOL = 16, STALE_MAX = 4096, WRONG_LINES_MAX = 20, DIVE_FRAMES_MAX = 96, LIVING_FORKS_MAX = 4 };
static const u64 ARENA = 0x100000000000u;

enum kind { PLAIN, SPARSE, RAGGED, HUGE, LOCKED, CODE, MOVER, COMER, HEAP, FILE_PRIVATE, SHARED_ANON, SHARED_MEMFD, SHARED_FILE };
static const char *const kind_names[] = {"plain", "sparse", "ragged", "huge", "locked", "code", "mover",
                                         "comer", "heap", "file-private", "shared-anonymous", "shared-memfd", "shared-file"};

// An entry: how often the page was written (40 bits) and by whom (16), what it
// is protected from, whether it was written at all since it was last dropped,
// and whether it is unmapped.
#define GENERATION(e) ((e) & 0xffffffffffu)
#define WRITER(e) ((e) >> 40 & 0xffffu)
static const u64 NO_WRITE = 1ull << 56, NO_ACCESS = 1ull << 57, WRITTEN = 1ull << 62, HOLE = 1ull << 63;

// What a lock protects, and the second place where its state is kept.
struct chain {
  pthread_mutex_t lock;
  int pipe[2];
  u64 steps, digest;
};
struct link {
  u64 steps, digest;
};

struct region {
  u64 id;
  enum kind kind;
  int slot, fd;
  byte *base, *alias;
  u64 pages, capacity;
  u64 *entries;
  struct chain *chain;
};

// Shared by all processes. The regions that all share are described here, too.
struct control {
  atomic_int stop, next_writer, wrongs, claimed, living_forks;
  _Atomic u64 request, rate, churn, forks, answer[PROCESSES_MAX], ticks[PROCESSES_MAX];
  _Atomic u64 pages_checked, writes, changes, forked;
  int pid[PROCESSES_MAX];
  char first[700];
  struct chain chain;
};

// Private to a process, and copied by fork: the model of its own memory.
struct model {
  struct chain chain;
  struct region regions[REGIONS_MAX];
  int count;
  u64 code_sum, writer, entries_used, entries_size;
  u64 entries[];
};

static struct {
  const char *dir;
  u64 seed, mib, children, threads, rate, churn, forks, timeout_ms;
} options = {"/tmp", 1, 16, 2, 2, 2000, 40, 4, 60000};

static struct control *control;
static struct model *model;
static u64 slot_bytes;
static int process_index, scratch[2], is_ephemeral;
static _Thread_local u64 random_state;
static _Thread_local u64 page_buffer[WORDS];

// ---------------------------------------------------------------- foundations

static u64 mix(u64 a, u64 b) {
  u64 z = a * 0x9e3779b97f4a7c15u + b * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static u64 next_random(void) { return random_state = mix(random_state, 77); }
static u64 below(u64 limit) { return limit == 0 ? 0 : next_random() % limit; }
static int once_in(u64 n) { return below(n) == 0; }

__attribute__((format(printf, 1, 2), noreturn)) static void fatal(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "mosaic: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, ": %s\n", strerror(errno));
  if (control) atomic_store(&control->stop, 2);
  _exit(2);
}

static void pause_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

static u64 now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000000000u + t.tv_nsec;
}

static const char *at(const char *name) {
  static _Thread_local char path[512];
  snprintf(path, sizeof path, "%s/%s", options.dir, name);
  return path;
}

static size_t read_whole(const char *path, char *buffer, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  size_t have = 0;
  ssize_t n;
  while (fd >= 0 && have + 1 < size && (n = read(fd, buffer + have, size - 1 - have)) > 0) have += n;
  if (fd >= 0) close(fd);
  buffer[have] = 0;
  return have;
}

static void replace_file(const char *name, const char *text, size_t length) {
  char fresh[600];
  snprintf(fresh, sizeof fresh, "%s/%s.new", options.dir, name);
  int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0 || write(fd, text, length) != (ssize_t)length || close(fd) != 0 || rename(fresh, at(name)) != 0)
    fatal("%s/%s", options.dir, name);
}

// Something is not as it must be. It is said on stderr, in a file, and in the
// control page: a wrong control page alone must not be able to hide it.
__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...) {
  char what[560], line[680];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  int length = snprintf(line, sizeof line, "WRONG %s (process %d%s, pid %d)", what, process_index,
                        is_ephemeral ? ", a fork of it" : "", getpid());
  if (atomic_exchange(&control->claimed, 1) == 0) memcpy(control->first, line, length + 1);
  if (atomic_fetch_add(&control->wrongs, 1) >= WRONG_LINES_MAX) return;
  line[length++] = '\n';
  int fd = open(at("wrong"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  int written = fd >= 0 && write(fd, line, length) == length;
  if (write(STDERR_FILENO, line, length) != length && !written) atomic_fetch_add(&control->wrongs, 1);
  if (fd >= 0) close(fd);
}

// ------------------------------------------------------------------ the model

static int is_shared(enum kind kind) { return kind >= SHARED_ANON; }
static int is_file(enum kind kind) { return kind == FILE_PRIVATE || kind == SHARED_FILE; }

static void random_page(u64 key, u64 *page) {
  for (u64 i = 0; i < WORDS; i++) {
    u64 z = (key + i) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93u;
    page[i] = z ^ (z >> 32);
  }
}

// Content of many sorts: random, empty, nearly empty, alike in many places,
// easily compressed.
static void key_page(u64 key, u64 *page) {
  switch (key & 15) {
    case 0:
    case 1: memset(page, 0, PAGE); break;
    case 2:
      memset(page, 0, PAGE);
      page[(key >> 8) % WORDS] = key;
      break;
    case 3: random_page(mix(options.seed, 1000 + (key >> 8) % POOL), page); break;
    case 4:
      for (int i = 0; i < WORDS; i++) page[i] = mix(key, i / 64);
      break;
    default: random_page(key, page);
  }
}

// `mov eax, <number>; ret` on x86-64: what a page of code answers when called.
static void code_page(u64 key, u64 *page) {
  byte *code = (byte *)page;
  random_page(key, page);
  uint32_t number = (uint32_t)(key >> 16);
  code[0] = 0xb8;
  memcpy(code + 1, &number, sizeof number);
  code[5] = 0xc3;
}

static u64 page_key(const struct region *r, u64 page, u64 entry) {
  return mix(mix(options.seed * 64 + r->id, page), entry & 0xffffffffffffffu & ~(NO_WRITE | NO_ACCESS));
}

static void expected_page(const struct region *r, u64 page, u64 entry, u64 *to) {
  if ((entry & WRITTEN) == 0 && is_file(r->kind)) random_page(mix(mix(options.seed, r->id), page), to);
  else if ((entry & WRITTEN) == 0) memset(to, 0, PAGE);
  else if (r->kind == CODE) code_page(page_key(r, page, entry), to);
  else key_page(page_key(r, page, entry), to);
}

static u64 entry_hash(const struct region *r, u64 page, u64 entry) { return mix(mix(r->id, page), entry); }
static u64 layout_hash(const struct region *r) { return mix(mix(r->id, (u64)r->base), r->pages); }

static void set_entry(struct region *r, u64 page, u64 entry) {
  r->chain->digest += entry_hash(r, page, entry) - entry_hash(r, page, r->entries[page]);
  r->entries[page] = entry;
}

static void set_layout(struct region *r, byte *base, u64 pages) {
  r->chain->digest -= layout_hash(r);
  r->base = base;
  r->pages = pages;
  r->chain->digest += layout_hash(r);
}

static u64 next_entry(u64 entry, u64 flags) {
  return ((GENERATION(entry) + 1) & 0xffffffffffu) | model->writer << 40 | flags;
}

static void send_link(struct chain *c) {
  struct link link = {c->steps, c->digest};
  if (write(c->pipe[1], &link, sizeof link) != sizeof link) fatal("a chain's pipe");
}

static struct link receive_link(struct chain *c) {
  struct link link;
  if (read(c->pipe[0], &link, sizeof link) != sizeof link) fatal("a chain's pipe");
  return link;
}

static void begin(struct chain *c) {
  pthread_mutex_lock(&c->lock);
  struct link link = receive_link(c);
  if (link.steps != c->steps || link.digest != c->digest)
    wrong("model: memory stands at step %lu digest %016lx, the kernel keeps step %lu digest %016lx", c->steps, c->digest,
          link.steps, link.digest);
  send_link(c);
}

// The memory of which a step began must be that in which it ends.
static void end(struct chain *c) {
  u64 steps = receive_link(c).steps;
  if (steps != c->steps) wrong("model: memory stands at step %lu, the kernel keeps step %lu", c->steps, steps);
  c->steps++;
  send_link(c);
  pthread_mutex_unlock(&c->lock);
}

static void make_chain(struct chain *c, int shared) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, shared ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE);
  pthread_mutex_init(&c->lock, &attributes);
  if (pipe2(c->pipe, O_CLOEXEC) != 0) fatal("pipe");
}

// -------------------------------------------------------------------- checking

static byte *address_of(const struct region *r, u64 page) { return r->base + page * PAGE; }

static int same_page(const struct region *r, u64 page, u64 entry, const void *found) {
  u64 other[WORDS];
  expected_page(r, page, entry, other);
  return memcmp(other, found, PAGE) == 0;
}

// What the wrong content is, if it is anything known: the way to the cause.
static const char *diagnose(const struct region *r, u64 page, const u64 *found, char *text, size_t size) {
  u64 entry = r->entries[page], other[WORDS] = {0};
  if (memcmp(other, found, PAGE) == 0) return "zeroes";
  for (u64 age = 1; age <= STALE_MAX && age < GENERATION(entry); age++) {
    if (!same_page(r, page, (entry & ~0xffffffffffu) | WRITTEN | (GENERATION(entry) - age), found)) continue;
    snprintf(text, size, "this page %lu generations ago", age);
    return text;
  }
  if (is_file(r->kind) && same_page(r, page, 0, found)) return "what the file held at first";
  for (u64 p = 0; p < r->pages; p++) {
    if (p == page || (r->entries[p] & HOLE) || !same_page(r, p, r->entries[p], found)) continue;
    snprintf(text, size, "page %lu of the same region", p);
    return text;
  }
  return "unknown";
}

static void report_page(const struct region *r, u64 page, const byte *where) {
  u64 found[WORDS], offset = 0;
  char text[64];
  memcpy(found, where, PAGE);
  while (offset < WORDS - 1 && found[offset] == page_buffer[offset]) offset++;
  u64 expected = page_buffer[offset];
  wrong("address %p: %s region %lu page %lu offset %lu, expected %016lx found %016lx; generation %lu of writer %lu%s; "
        "the page holds %s",
        where + offset * 8, kind_names[r->kind], r->id, page, offset * 8, expected, found[offset],
        GENERATION(r->entries[page]), WRITER(r->entries[page]), r->entries[page] & WRITTEN ? "" : ", not written",
        diagnose(r, page, found, text, sizeof text));
}

static int is_mapped(const byte *where) {
  byte residency;
  return mincore((void *)where, PAGE, &residency) == 0;
}

// Protection is probed by letting the kernel try: it says EFAULT and no signal comes.
static void check_protection(const struct region *r, u64 page, u64 entry) {
  byte *where = address_of(r, page), one;
  if (entry & NO_ACCESS) {
    if (write(scratch[1], where, 1) != -1 || errno != EFAULT) {
      wrong("address %p: %s region %lu page %lu can be read and must not", where, kind_names[r->kind], r->id, page);
      if (read(scratch[0], &one, 1) != 1) fatal("scratch pipe");
    }
    return;
  }
  if (write(scratch[1], "x", 1) != 1) fatal("scratch pipe");
  if (read(scratch[0], where, 1) != -1 || errno != EFAULT) {
    wrong("address %p: %s region %lu page %lu can be written and must not", where, kind_names[r->kind], r->id, page);
    return;
  }
  if (read(scratch[0], &one, 1) != 1) fatal("scratch pipe");
}

static void compare_page(const struct region *r, u64 page, const byte *where) {
  if (memcmp(page_buffer, where, PAGE) == 0) return;
  report_page(r, page, where);
}

static void call_code(const struct region *r, u64 page) {
#ifdef __x86_64__
  byte *where = address_of(r, page);
  uint32_t number = (uint32_t)(page_key(r, page, r->entries[page]) >> 16), answer;
  if (memcmp(page_buffer, where, 8) != 0) return;
  answer = ((uint32_t(*)(void))where)();
  if (answer != number) wrong("address %p: code answers %08x instead of %08x", where, answer, number);
#else
  (void)r, (void)page;
#endif
}

static void check_page(const struct region *r, u64 page) {
  u64 entry = r->entries[page];
  byte *where = address_of(r, page);
  atomic_fetch_add_explicit(&control->pages_checked, 1, memory_order_relaxed);
  if (entry & HOLE) {
    if (is_mapped(where)) wrong("address %p: %s region %lu page %lu is there and must not", where, kind_names[r->kind], r->id, page);
    return;
  }
  if (!is_mapped(where)) {
    wrong("address %p: %s region %lu page %lu is not there", where, kind_names[r->kind], r->id, page);
    return;
  }
  if (entry & (NO_WRITE | NO_ACCESS)) check_protection(r, page, entry);
  if (entry & NO_ACCESS) mprotect(where, PAGE, PROT_READ);
  expected_page(r, page, entry, page_buffer);
  compare_page(r, page, where);
  if (r->alias) compare_page(r, page, r->alias + page * PAGE);
  if (entry & NO_ACCESS) mprotect(where, PAGE, PROT_NONE);
  if (r->kind == CODE && (entry & WRITTEN)) call_code(r, page);
}

static byte *slot_base(int slot) { return (byte *)(ARENA + (u64)slot * slot_bytes); }

// Nothing lies between two addresses: otherwise the kernel would refuse this.
static void check_gap(byte *from, byte *to) {
  if (from >= to) return;
  void *probe = mmap(from, to - from, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
  if (probe == from) munmap(from, to - from);
  else wrong("address %p: something lies in the hole before %p", from, to);
}

static u64 mapped_pages(const struct region *r) { return r->kind == MOVER || r->kind == HEAP ? r->pages : r->capacity; }

// Which slots belong to whom is seen by slot; regions and aliases are one each.
static void check_gaps(void) {
  byte *from[SLOTS] = {0}, *to[SLOTS] = {0};
  for (int i = 0; i < model->count; i++) {
    const struct region *r = &model->regions[i];
    if (r->slot < 0) continue;
    from[r->slot] = r->base;
    to[r->slot] = r->base + mapped_pages(r) * PAGE;
    if (r->alias == NULL) continue;
    int slot = ((u64)r->alias - ARENA) / slot_bytes;
    from[slot] = r->alias;
    to[slot] = r->alias + r->pages * PAGE;
  }
  for (int slot = 0; slot < SLOTS; slot++) {
    if (from[slot] == NULL) {
      check_gap(slot_base(slot), slot_base(slot + 1));
      continue;
    }
    check_gap(slot_base(slot), from[slot]);
    check_gap(to[slot], slot_base(slot + 1));
  }
}

static u64 program_sum(void) {
  extern char __executable_start, etext;
  u64 sum = 0;
  for (const u64 *word = (const u64 *)&__executable_start; (const char *)(word + 1) <= &etext; word++) sum = mix(sum, *word);
  return sum;
}

static void check_chain(struct chain *c) {
  u64 digest = 0;
  for (int i = 0; i < model->count; i++) {
    const struct region *r = &model->regions[i];
    if (r->chain != c) continue;
    digest += layout_hash(r);
    for (u64 page = 0; page < r->capacity; page++) digest += entry_hash(r, page, r->entries[page]);
  }
  if (digest != c->digest) wrong("model: the entries' digest is %016lx and must be %016lx", digest, c->digest);
}

// Every byte of everything that this process has.
static void check_everything(int also_shared) {
  struct chain *const chains[] = {&model->chain, &control->chain};
  for (int c = 0; c < 1 + also_shared; c++) {
    begin(chains[c]);
    check_chain(chains[c]);
    for (int i = 0; i < model->count; i++) {
      const struct region *r = &model->regions[i];
      if (r->chain != chains[c]) continue;
      for (u64 page = 0; page < r->pages; page++) check_page(r, page);
    }
    if (c == 0) check_gaps();
    end(chains[c]);
  }
  if (program_sum() != model->code_sum) wrong("the program's own code changed");
}

// -------------------------------------------------------------------- changing

static void copy_by_kernel(byte *where) {
  size_t sent = 0, got = 0;
  while (sent < PAGE) {
    ssize_t n = write(scratch[1], (byte *)page_buffer + sent, PAGE - sent);
    if (n < 0 && errno != EINTR) fatal("scratch pipe");
    if (n > 0) sent += n;
  }
  while (got < PAGE) {
    ssize_t n = read(scratch[0], where + got, PAGE - got);
    if (n < 0 && errno != EINTR) fatal("reading into %p", where);
    if (n > 0) got += n;
  }
}

// The model is told first: then a torn write is seen, whoever caused it.
static void write_page(struct region *r, u64 page) {
  u64 entry = r->entries[page];
  byte *where = address_of(r, page);
  if (entry & (HOLE | NO_WRITE | NO_ACCESS)) return;
  int again = (entry & WRITTEN) && once_in(8);
  if (!again) set_entry(r, page, next_entry(entry, WRITTEN));
  expected_page(r, page, r->entries[page], page_buffer);
  if (r->kind == CODE) mprotect(where, PAGE, PROT_READ | PROT_WRITE);
  // The kernel writes for a process, too: its scratch pipe has one user at a time.
  if (r->chain == &model->chain && once_in(4)) copy_by_kernel(where);
  else memcpy(r->alias && once_in(2) ? r->alias + page * PAGE : where, page_buffer, PAGE);
  if (r->kind == CODE) mprotect(where, PAGE, PROT_READ | PROT_EXEC);
  atomic_fetch_add_explicit(&control->writes, 1, memory_order_relaxed);
}

static void drop_pages(struct region *r, u64 first, u64 count) {
  if (r->kind == LOCKED || r->kind == CODE || r->kind == SHARED_FILE) return;
  int advice = is_shared(r->kind) ? MADV_REMOVE : MADV_DONTNEED;
  for (u64 page = first; page < first + count; page++) {
    u64 entry = r->entries[page];
    if (entry & (HOLE | NO_WRITE | NO_ACCESS)) continue;
    if (madvise(address_of(r, page), PAGE, advice) != 0) fatal("madvise of %s", kind_names[r->kind]);
    set_entry(r, page, next_entry(entry, 0));
  }
}

static void *map_anonymous(byte *where, u64 pages) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  void *got = mmap(where, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (got != where) fatal("mmap of %lu pages at %p", pages, where);
  return got;
}

static void punch_or_fill(struct region *r, u64 first, u64 count) {
  int punch = once_in(2);
  for (u64 page = first; page < first + count; page++) {
    u64 entry = r->entries[page];
    if (punch == ((entry & HOLE) != 0)) continue;
    if (punch) munmap(address_of(r, page), PAGE);
    else map_anonymous(address_of(r, page), 1);
    set_entry(r, page, next_entry(entry, punch ? HOLE : 0));
  }
}

static void protect(struct region *r, u64 first, u64 count) {
  static const u64 flags[] = {0, NO_WRITE, NO_ACCESS};
  static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE};
  u64 chosen = below(3);
  for (u64 page = first; page < first + count; page++) {
    u64 entry = r->entries[page];
    if (entry & HOLE) continue;
    if (mprotect(address_of(r, page), PAGE, protections[chosen]) != 0) fatal("mprotect");
    set_entry(r, page, (entry & ~(NO_WRITE | NO_ACCESS)) | flags[chosen]);
  }
}

// A free slot, and a random place in it that leaves a hole on either side.
static byte *free_place(struct region *r, int *slot) {
  int taken[SLOTS] = {0};
  for (int i = 0; i < model->count; i++) {
    const struct region *other = &model->regions[i];
    if (other->slot >= 0) taken[other->slot] = 1;
    if (other->alias) taken[((u64)other->alias - ARENA) / slot_bytes] = 1;
  }
  do *slot = (int)below(SLOTS);
  while (taken[*slot]);
  u64 room = slot_bytes / PAGE - r->capacity - 2;
  u64 offset = r->kind == HUGE ? HUGE_PAGES * (1 + below(room / HUGE_PAGES - 1)) : 1 + below(room);
  return slot_base(*slot) + offset * PAGE;
}

static void resize_or_move(struct region *r) {
  u64 pages = 1 + below(r->capacity);
  int slot = r->slot;
  byte *to = once_in(2) ? free_place(r, &slot) : r->base;
  // Growing in place always succeeds: the rest of the slot is a hole.
  int flags = to == r->base ? 0 : MREMAP_MAYMOVE | MREMAP_FIXED;
  if (mremap(r->base, r->pages * PAGE, pages * PAGE, flags, to) != to) fatal("mremap");
  r->slot = slot;
  for (u64 page = pages; page < r->pages; page++) set_entry(r, page, next_entry(r->entries[page], HOLE));
  for (u64 page = r->pages; page < pages; page++) set_entry(r, page, next_entry(r->entries[page], 0));
  set_layout(r, to, pages);
}

static void resize_heap(struct region *r) {
  u64 pages = 1 + below(r->capacity);
  if (sbrk(0) != r->base + r->pages * PAGE || brk(r->base + pages * PAGE) != 0) return;
  for (u64 page = pages; page < r->pages; page++) set_entry(r, page, next_entry(r->entries[page], HOLE));
  for (u64 page = r->pages; page < pages; page++) set_entry(r, page, next_entry(r->entries[page], 0));
  set_layout(r, r->base, pages);
}

static void come_or_go(struct region *r) {
  if (r->entries[0] & HOLE) {
    byte *base = free_place(r, &r->slot);
    map_anonymous(base, r->pages);
    set_layout(r, base, r->pages);
    for (u64 page = 0; page < r->pages; page++) set_entry(r, page, next_entry(r->entries[page], 0));
    return;
  }
  munmap(r->base, r->pages * PAGE);
  for (u64 page = 0; page < r->pages; page++) set_entry(r, page, next_entry(r->entries[page], HOLE));
}

static void change(struct region *r) {
  u64 first = below(r->pages), most = r->pages - first < 32 ? r->pages - first : 32;
  u64 count = 1 + below(most);
  atomic_fetch_add_explicit(&control->changes, 1, memory_order_relaxed);
  if (r->kind == RAGGED && once_in(2)) return once_in(2) ? punch_or_fill(r, first, count) : protect(r, first, count);
  if (r->kind == MOVER && once_in(2)) return resize_or_move(r);
  if (r->kind == HEAP && once_in(2)) return resize_heap(r);
  if (r->kind == COMER && once_in(4)) return come_or_go(r);
  drop_pages(r, first, count);
}

// A page is as likely as any other; most are in the largest regions.
static struct region *random_region(u64 *page) {
  u64 total = 0;
  for (int i = 0; i < model->count; i++) total += model->regions[i].capacity;
  u64 chosen = below(total);
  int i = 0;
  while (chosen >= model->regions[i].capacity) chosen -= model->regions[i++].capacity;
  *page = chosen;
  return &model->regions[i];
}

static void one_write(void) {
  u64 page;
  struct region *r = random_region(&page);
  begin(r->chain);
  if (page < r->pages) write_page(r, page);
  if (once_in(4) && page < r->pages) check_page(r, page);
  end(r->chain);
}

static void one_change(void) {
  struct region *r = &model->regions[below(model->count)];
  begin(r->chain);
  change(r);
  end(r->chain);
}

static void one_check(void) {
  u64 page;
  struct region *r = random_region(&page);
  begin(r->chain);
  // A sparse region shall stay sparse: reading maps the zero page.
  if (page < r->pages && (r->kind != SPARSE || (r->entries[page] & WRITTEN))) check_page(r, page);
  end(r->chain);
}

// Works for as many milliseconds as its share of the rates demands.
static void work(u64 share, u64 *owed_writes, u64 *owed_changes) {
  *owed_writes += atomic_load(&control->rate) / share;
  *owed_changes += atomic_load(&control->churn) / share;
  for (; *owed_writes >= 1000; *owed_writes -= 1000) one_write();
  for (; *owed_changes >= 1000; *owed_changes -= 1000) one_change();
  one_check();
}

static void *mutator(void *argument) {
  u64 writes = 0, changes = 0;
  random_state = mix(options.seed, model->writer * 64 + (u64)argument);
  while (!atomic_load(&control->stop)) {
    work(options.threads, &writes, &changes);
    pause_ms(1);
  }
  return NULL;
}

// ------------------------------------------------------- stacks, threads, forks

// Frames that hold something while they wait, on a stack that grows for it.
static void dive(u64 key, int frames, long wait_ms) {
  volatile u64 frame[2 * WORDS];
  for (int i = 0; i < 2 * WORDS; i++) frame[i] = mix(key, i);
  if (frames > 0) dive(mix(key, 1), frames - 1, wait_ms);
  else pause_ms(wait_ms);
  for (int i = 0; i < 2 * WORDS; i++) {
    if (frame[i] == mix(key, i)) continue;
    wrong("address %p: stack, expected %016lx found %016lx", (void *)&frame[i], mix(key, i), frame[i]);
    break;
  }
}

static void *passing_thread(void *argument) {
  random_state = (u64)argument;
  dive(next_random(), 4, (long)below(200));
  return NULL;
}

static void start_passing_thread(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, passing_thread, (void *)next_random()) == 0) pthread_detach(thread);
}

// A process of its own from here on: the pipes of its parent stay its parent's.
// The chain's lock is held, as it was when the parent forked.
static void become_own(void) {
  int *const pairs[] = {model->chain.pipe, scratch};
  for (int i = 0; i < 2; i++) {
    close(pairs[i][0]);
    close(pairs[i][1]);
    if (pipe2(pairs[i], O_CLOEXEC) != 0) fatal("pipe");
  }
  model->writer = (u64)atomic_fetch_add(&control->next_writer, 1) & 0xffff;
  random_state = mix(options.seed, model->writer);
  send_link(&model->chain);
  end(&model->chain);
}

__attribute__((noreturn)) static void live_as_fork(void) {
  u64 writes = 0, changes = 0;
  is_ephemeral = 1;
  become_own();
  check_everything(0);
  for (u64 ms = below(400); ms > 0 && !atomic_load(&control->stop); ms--) {
    work(1, &writes, &changes);
    pause_ms(1);
  }
  check_everything(1);
  atomic_fetch_sub(&control->living_forks, 1);
  _exit(0);
}

// The one who forks holds the chain, so that the child finds a model that fits.
static void fork_one(void) {
  if (atomic_fetch_add(&control->living_forks, 1) >= LIVING_FORKS_MAX * (int)(options.children + 1)) {
    atomic_fetch_sub(&control->living_forks, 1);
    return;
  }
  begin(&model->chain);
  pid_t pid = fork();
  if (pid == 0) live_as_fork();
  end(&model->chain);
  if (pid < 0) atomic_fetch_sub(&control->living_forks, 1);
  else atomic_fetch_add(&control->forked, 1);
}

static void reap(void) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (u64 i = 0; i <= options.children; i++) {
      if (control->pid[i] != pid || atomic_load(&control->stop)) continue;
      wrong("process %lu ended with status %d", i, status);
      control->pid[i] = 0;
    }
    if (WIFSIGNALED(status) && !atomic_load(&control->stop)) wrong("pid %d ended by signal %d", pid, WTERMSIG(status));
  }
}

// ------------------------------------------------------------------ start

static void *map_anywhere(u64 size, int shared) {
  int flags = MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE);
  void *got = mmap(NULL, (size + PAGE - 1) / PAGE * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (got == MAP_FAILED) fatal("mmap of %lu bytes", size);
  return got;
}

static u64 *entries_for(u64 pages, int shared) {
  if (shared) return map_anywhere(pages * sizeof(u64), 1);
  if (model->entries_used + pages > model->entries_size) fatal("more pages than planned");
  model->entries_used += pages;
  return model->entries + model->entries_used - pages;
}

static int make_file(const struct region *r) {
  char name[32];
  snprintf(name, sizeof name, "mosaic.%lu", r->id);
  int fd = open(at(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  for (u64 page = 0; fd >= 0 && page < r->capacity; page++) {
    expected_page(r, page, 0, page_buffer);
    if (write(fd, page_buffer, PAGE) != PAGE) fatal("%s/%s", options.dir, name);
  }
  if (fd < 0) fatal("%s/%s", options.dir, name);
  return fd;
}

static void map_region(struct region *r) {
  int flags = MAP_FIXED_NOREPLACE | (is_shared(r->kind) ? MAP_SHARED : MAP_PRIVATE), fd = -1;
  u64 size = r->pages * PAGE;
  if (r->kind == SHARED_MEMFD && ((fd = memfd_create("mosaic", MFD_CLOEXEC)) < 0 || ftruncate(fd, size) != 0)) fatal("memfd");
  if (is_file(r->kind)) fd = make_file(r);
  if (fd < 0) flags |= MAP_ANONYMOUS;
  int protection = PROT_READ | (r->kind == CODE ? PROT_EXEC : PROT_WRITE);
  if (mmap(r->base, size, protection, flags, fd, 0) != r->base) fatal("mmap of %s", kind_names[r->kind]);
  if (r->kind == HUGE) madvise(r->base, size, MADV_HUGEPAGE);
  if (r->kind == LOCKED && mlock(r->base, size) != 0) fprintf(stderr, "mosaic: mlock: %s; goes without\n", strerror(errno));
  if (r->kind == SHARED_MEMFD) {
    int slot;
    r->alias = free_place(r, &slot);
    if (mmap(r->alias, size, PROT_READ | PROT_WRITE, flags, fd, 0) != r->alias) fatal("mmap of an alias");
  }
  // The memfd stays open: its descriptor is carried as well. A mapped file does not need one.
  if (is_file(r->kind)) close(fd);
}

static void add_region(enum kind kind, u64 pages) {
  struct region *r = &model->regions[model->count];
  *r = (struct region){.id = (u64)model->count, .kind = kind, .slot = -1, .fd = -1, .capacity = pages, .pages = pages};
  r->chain = is_shared(kind) ? &control->chain : &model->chain;
  r->entries = entries_for(pages, is_shared(kind));
  if (kind == HEAP) {
    byte *start = sbrk(0);
    r->base = (byte *)(((u64)start + PAGE - 1) / PAGE * PAGE);
    if (brk(r->base + pages * PAGE) != 0) fatal("brk");
  } else {
    r->base = free_place(r, &r->slot);
    map_region(r);
  }
  model->count++;
  r->chain->digest += layout_hash(r);
  for (u64 page = 0; page < pages; page++) r->chain->digest += entry_hash(r, page, 0);
}

// The kinds of regions and their sizes. Plain ones take what is left of --mib.
static void plan(void) {
  for (int i = 0; i < 3; i++) add_region(RAGGED, 64 + below(192));
  for (int i = 0; i < 2; i++) add_region(MOVER, 64 + below(192));
  for (int i = 0; i < 2; i++) add_region(COMER, 32 + below(96));
  for (int i = 0; i < 2; i++) add_region(FILE_PRIVATE, 32 + below(96));
  add_region(SPARSE, 4096);
  add_region(HUGE, 2 * HUGE_PAGES);
  add_region(LOCKED, 4 + below(8));
  add_region(CODE, 4 + below(8));
  add_region(HEAP, 64 + below(64));
  add_region(SHARED_ANON, 64 + below(192));
  add_region(SHARED_MEMFD, 64 + below(192));
  add_region(SHARED_FILE, 32 + below(96));
  u64 left = options.mib * 256 > 3072 ? options.mib * 256 - 3072 : 512;
  for (int regions = 6; regions > 0; regions--) {
    u64 pages = regions == 1 ? left : 1 + below(2 * left / regions - 1);
    add_region(PLAIN, pages);
    left = left - pages > 1 ? left - pages : 1;
  }
}

// About two thirds of everything is written before anybody looks.
static void write_first(void) {
  for (int i = 0; i < model->count; i++) {
    struct region *r = &model->regions[i];
    begin(r->chain);
    for (u64 page = 0; page < r->pages; page++)
      if (r->kind == SPARSE ? once_in(100) : !once_in(3)) write_page(r, page);
    end(r->chain);
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)context;
  wrong("signal %d at address %p", number, info->si_addr);
  _exit(7);
}

static void on_stop(int number) {
  (void)number;
  if (control) atomic_store(&control->stop, 1);
}

static void set_signals(void) {
  static byte stack[65536];
  stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
  sigaltstack(&alternate, NULL);
  struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  struct sigaction stop = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
  for (const int *number = (const int[]){SIGSEGV, SIGBUS, SIGILL, SIGFPE, 0}; *number; number++) sigaction(*number, &fault, NULL);
  // Whoever read its output may have gone.
  signal(SIGPIPE, SIG_IGN);
  sigaction(SIGTERM, &stop, NULL);
  sigaction(SIGINT, &stop, NULL);
}

// ------------------------------------------------------------------ being asked

static void write_regions(void) {
  static char text[REGIONS_MAX * 160];
  char name[32];
  int length = 0;
  for (int i = 0; i < model->count; i++) {
    const struct region *r = &model->regions[i];
    u64 written = 0, untouched = 0;
    for (u64 page = 0; page < r->pages; page++) {
      if (r->entries[page] & (HOLE | NO_ACCESS)) continue;
      if ((r->entries[page] & WRITTEN) && written == 0) written = (u64)address_of(r, page);
      if (!(r->entries[page] & WRITTEN) && untouched == 0) untouched = (u64)address_of(r, page);
    }
    length += snprintf(text + length, sizeof text - length, "%d %s %lx %lu %lx %lx\n", getpid(), kind_names[r->kind],
                       (u64)r->base, r->pages, written, untouched);
  }
  // The model itself, but for its lock and pipe: what a rollback of memory would take along.
  const byte *start = (const byte *)&model->chain.steps, *after = (const byte *)(model->entries + model->entries_used);
  length += snprintf(text + length, sizeof text - length, "%d model %lx %lu 0 0\n", getpid(), (u64)start,
                     (u64)(after - start) / PAGE + 1);
  snprintf(name, sizeof name, "regions.%d", process_index);
  replace_file(name, text, length);
}

static void write_verdict(const char *nonce) {
  static char text[4096];
  u64 ticks = 0;
  for (u64 i = 0; i <= options.children; i++) ticks += atomic_load(&control->ticks[i]);
  int wrongs = atomic_load(&control->wrongs);
  for (char *c = control->first; *c; c++)
    if (*c == '"' || *c == '\\') *c = '\'';
  int length = snprintf(
      text, sizeof text,
      "{\"nonce\":\"%s\",\"ok\":%s,\"wrong\":%d,\"first\":\"%s\",\"seed\":%lu,\"processes\":%lu,\"steps\":%lu,\"ticks\":%lu,"
      "\"checked\":%lu,\"writes\":%lu,\"changes\":%lu,\"forked\":%lu,\"living\":%d}\n",
      nonce, wrongs == 0 ? "true" : "false", wrongs, wrongs == 0 ? "" : control->first, options.seed, options.children + 1,
      model->chain.steps, ticks, atomic_load(&control->pages_checked), atomic_load(&control->writes),
      atomic_load(&control->changes), atomic_load(&control->forked), atomic_load(&control->living_forks));
  replace_file("verdict", text, length);
}

static void forgive(void) {
  atomic_store(&control->wrongs, 0);
  atomic_store(&control->claimed, 0);
  unlink(at("wrong"));
}

static char asked_nonce[40], answered_nonce[40];
static u64 asked_verify;

static void set_knob(const char *word, u64 number) {
  if (strcmp(word, "rate") == 0) atomic_store(&control->rate, number);
  if (strcmp(word, "churn") == 0) atomic_store(&control->churn, number);
  if (strcmp(word, "forks") == 0) atomic_store(&control->forks, number);
  if (strcmp(word, "forgive") == 0) forgive();
}

// A verification is every process's business: the first waits for all others.
static void listen(void) {
  char text[128], nonce[40], word[16];
  u64 number = 0;
  read_whole(at("request"), text, sizeof text);
  if (sscanf(text, "%39s %15s %lu", nonce, word, &number) < 2 || text[strlen(text) - 1] != '\n') return;
  if (strcmp(nonce, answered_nonce) == 0) return;
  if (strcmp(nonce, asked_nonce) != 0) {
    strcpy(asked_nonce, nonce);
    set_knob(word, number);
    asked_verify = strcmp(word, "verify") == 0;
    if (asked_verify) atomic_fetch_add(&control->request, 1);
    return;
  }
  for (u64 i = 0; asked_verify && i <= options.children; i++)
    if (control->pid[i] != 0 && atomic_load(&control->answer[i]) != atomic_load(&control->request)) return;
  strcpy(answered_nonce, nonce);
  write_verdict(nonce);
}

__attribute__((noreturn)) static void live(int index) {
  u64 owed_forks = 0;
  process_index = index;
  set_signals();
  for (u64 i = 0; i < options.threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, mutator, (void *)i) != 0) fatal("pthread_create");
  }
  while (!atomic_load(&control->stop)) {
    u64 request = atomic_load(&control->request);
    reap();
    if (index == 0) listen();
    if (atomic_load(&control->answer[index]) != request) {
      check_everything(1);
      write_regions();
      atomic_store(&control->answer[index], request);
    }
    for (owed_forks += atomic_load(&control->forks) * 5; owed_forks >= 1000; owed_forks -= 1000) fork_one();
    if (once_in(20)) dive(next_random(), (int)below(DIVE_FRAMES_MAX), (long)below(once_in(10) ? 300 : 10));
    if (once_in(50)) start_passing_thread();
    atomic_fetch_add(&control->ticks[index], 1);
    pause_ms(5);
  }
  _exit(atomic_load(&control->stop) == 1 ? 0 : 2);
}

static int run(void) {
  // What malloc takes must not lie on the heap, which is one of the regions.
  mallopt(M_MMAP_THRESHOLD, 0);
  slot_bytes = 8u << 20;
  while (slot_bytes < (options.mib << 20) + (40u << 20)) slot_bytes *= 2;
  u64 entries = options.mib * 256 + 16384;
  control = map_anywhere(sizeof *control, 1);
  model = map_anywhere(sizeof *model + entries * sizeof(u64) + PAGE, 0);
  model->entries_size = entries;
  if (pipe2(scratch, O_CLOEXEC) != 0) fatal("pipe");
  atomic_store(&control->rate, options.rate);
  atomic_store(&control->churn, options.churn);
  atomic_store(&control->forks, options.forks);
  unlink(at("wrong"));
  unlink(at("request"));
  unlink(at("verdict"));
  random_state = mix(options.seed, 1);
  make_chain(&control->chain, 1);
  make_chain(&model->chain, 0);
  model->code_sum = program_sum();
  plan();
  send_link(&control->chain);
  send_link(&model->chain);
  set_signals();
  write_first();
  control->pid[0] = getpid();
  model->writer = (u64)atomic_fetch_add(&control->next_writer, 1);
  for (u64 i = 1; i <= options.children; i++) {
    begin(&model->chain);
    pid_t pid = fork();
    if (pid < 0) fatal("fork");
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      become_own();
      live((int)i);
    }
    control->pid[i] = pid;
    end(&model->chain);
  }
  dprintf(STDOUT_FILENO, "mosaic: seed %lu, %d regions\n", options.seed, model->count);
  live(0);
}

// ------------------------------------------------------------------ asking

static int ask(const char *word, const char *number) {
  char text[128], nonce[40], answer[4096], had[64];
  snprintf(nonce, sizeof nonce, "%lx.%d", now_ns(), getpid());
  int length = snprintf(text, sizeof text, "%s %s %s\n", nonce, word, number);
  replace_file("request", text, length);
  snprintf(had, sizeof had, "{\"nonce\":\"%s\"", nonce);
  u64 limit = now_ns() + options.timeout_ms * 1000000;
  while (now_ns() < limit) {
    // A mosaic that only starts takes away what an earlier one was asked, and may take this for it.
    if (access(at("request"), F_OK) != 0) replace_file("request", text, length);
    read_whole(at("verdict"), answer, sizeof answer);
    if (strncmp(answer, had, strlen(had)) == 0) {
      fputs(answer, stdout);
      char line[1024];
      int quiet = read_whole(at("wrong"), line, sizeof line) == 0;
      if (!quiet) fputs(line, stderr);
      return quiet && strstr(answer, "\"ok\":true") ? 0 : 1;
    }
    pause_ms(5);
  }
  fprintf(stderr, "mosaic: no answer within %lu ms\n", options.timeout_ms);
  return 3;
}

static u64 number(const char *text, u64 least, u64 most) {
  char *end;
  u64 value = strtoul(text, &end, 10);
  if (*end == 0 && value >= least && value <= most) return value;
  fprintf(stderr, "mosaic: %s is not from %lu to %lu\n", text, least, most);
  exit(2);
}

int main(int argc, char **argv) {
  const char *words[3] = {"run", "status", "0"};
  int count = 0;
  for (int i = 1; i < argc; i++) {
    const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
    if (strncmp(option, "--", 2) != 0) {
      if (count < 3) words[count++] = option;
      continue;
    }
    i++;
    if (strcmp(option, "--dir") == 0) options.dir = value;
    else if (strcmp(option, "--seed") == 0) options.seed = number(value, 0, 1u << 30);
    else if (strcmp(option, "--mib") == 0) options.mib = number(value, 1, 16384);
    else if (strcmp(option, "--children") == 0) options.children = number(value, 0, PROCESSES_MAX - 1);
    else if (strcmp(option, "--threads") == 0) options.threads = number(value, 1, THREADS_MAX);
    else if (strcmp(option, "--rate") == 0) options.rate = number(value, 0, 10000000);
    else if (strcmp(option, "--churn") == 0) options.churn = number(value, 0, 100000);
    else if (strcmp(option, "--forks") == 0) options.forks = number(value, 0, 1000);
    else if (strcmp(option, "--timeout-ms") == 0) options.timeout_ms = number(value, 1, 3600000);
    else {
      fprintf(stderr, "mosaic: unknown option %s\n", option);
      return 2;
    }
  }
  if (strcmp(words[0], "run") == 0) return run();
  if (strcmp(words[0], "ask") == 0) return ask(words[1], words[2]);
  fprintf(stderr, "mosaic: unknown command %s (run, ask)\n", words[0]);
  return 2;
}
