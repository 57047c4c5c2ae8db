/*
 * pulse: a service that can be measured. It holds memory, dirties it at a chosen rate, ticks a thousand times a second by
 * the clock, and answers clients with the number of its tick.
 *
 *   pulse hold --size MIB [--dirty KB_S] [--hot PERCENT] [--read KB_S] [--zero MIB] [--compressible] [--port N] --log FILE
 *   pulse ask ADDRESS PORT EVERY_US LOG
 *
 * The log has only what is needed to know every tick (or, of `ask`, every answer): a time for each hundredth, and a line
 * for each that came later than twice its period after the one before. It stays small, because it is part of what moves:
 *
 *   beat N SECONDS.MICROSECONDS 0 VALUE        every hundredth
 *   late N SECONDS.MICROSECONDS GAP_US VALUE   N came GAP_US after N-1
 *
 * N counts without a break over the life of the process, times are of the real-time clock, VALUE is how many pages have
 * been written (`hold`) or the tick that was answered (`ask`). Lines pass through a ring in memory to a thread that writes
 * them, so that a slow disk does not look like a late tick.
 *
 * Memory: each page carries the number of times it was written, and the rest of it follows from that number, its place
 * and when the program was started. On SIGUSR1 all of it is recomputed and compared, and the sum of those numbers, weighted by place, must be the one
 * that was carried along with every write. So a stale page, a page in another's place or one wrong bit are found:
 * "checksum ok SUM at N" or "checksum BAD pages P first Q sum FOUND expected SUM at N". --compressible pages shrink to
 * about an eighth; --zero adds memory that was touched and holds zeros.
 *
 * Ticks are due at whole milliseconds of the real-time clock, slept for with absolute deadlines: real time means the same
 * on the host it moves to, which time since boot does not. What was due while it stood still is not made up for, neither
 * ticks nor writes. Writes and reads are made by the thread that ticks, so a page that has to be waited for is seen as a
 * late tick.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  PAGE = 4096,
  WORDS = PAGE / 8,
  COMPRESSIBLE_WORDS = WORDS / 8,
  RING = 8192,
  BEAT = 100,
  FLUSH_NS = 20000000,
  CLIENTS_MAX = 64,
  ANSWER_LIMIT_MS = 5000,
  RECONNECT_NS = 1000000,
  /* Writes that were due during a standstill are dropped beyond this much of it. */
  OWED_NS_MAX = 20000000,
};
static const int64_t TICK_NS = 1000000;

struct entry {
  uint64_t n;
  int64_t at_ns;
  int64_t gap_ns;
  uint64_t value;
};

static struct entry ring[RING];
static _Atomic uint64_t ring_head, ring_tail;
static _Atomic uint64_t dropped;
static _Atomic uint64_t ticks, writes;
static volatile sig_atomic_t checksum_wanted, end_wanted;
static int log_fd = -1;

static uint64_t *memory;
static uint64_t pages, expected, seed;
static int compressible;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void die(const char *what) {
  fprintf(stderr, "pulse: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void write_all(const char *text, size_t length) {
  while (length > 0) {
    ssize_t done = write(log_fd, text, length);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) exit(3);
    text += done;
    length -= (size_t)done;
  }
}

/* ---- the log ---- */

static void note(uint64_t n, int64_t at_ns, int64_t gap_ns, uint64_t value) {
  uint64_t head = atomic_load_explicit(&ring_head, memory_order_relaxed);
  if (head - atomic_load_explicit(&ring_tail, memory_order_acquire) >= RING) {
    dropped++;
    return;
  }
  ring[head % RING] = (struct entry){n, at_ns, gap_ns, value};
  atomic_store_explicit(&ring_head, head + 1, memory_order_release);
}

/* Of every hundredth, and of those that came too late. */
static void note_if_due(uint64_t n, int64_t at_ns, int64_t before_ns, int64_t period_ns, uint64_t value) {
  int64_t gap_ns = n == 0 ? 0 : at_ns - before_ns;
  if (gap_ns > 2 * period_ns) note(n, at_ns, gap_ns, value);
  else if (n % BEAT == 0) note(n, at_ns, 0, value);
}

static void flush_ring(void) {
  uint64_t tail = atomic_load_explicit(&ring_tail, memory_order_relaxed);
  uint64_t head = atomic_load_explicit(&ring_head, memory_order_acquire);
  while (tail < head) {
    char text[8192];
    size_t length = 0;
    for (; tail < head && length < sizeof text - 128; tail++) {
      struct entry *e = &ring[tail % RING];
      length += (size_t)snprintf(text + length, sizeof text - length, "%s %llu %lld.%06lld %lld %llu\n",
                                 e->gap_ns > 0 ? "late" : "beat", (unsigned long long)e->n,
                                 (long long)(e->at_ns / 1000000000), (long long)(e->at_ns % 1000000000 / 1000),
                                 (long long)(e->gap_ns / 1000), (unsigned long long)e->value);
    }
    write_all(text, length);
    atomic_store_explicit(&ring_tail, tail, memory_order_release);
  }
  uint64_t lost = atomic_exchange(&dropped, 0);
  if (lost > 0) {
    char text[64];
    write_all(text, (size_t)snprintf(text, sizeof text, "dropped %llu\n", (unsigned long long)lost));
  }
}

static void *write_log(void *unused) {
  while (!end_wanted) {
    struct timespec rest = {0, FLUSH_NS};
    nanosleep(&rest, NULL);
    flush_ring();
  }
  return unused;
}

static void open_log(const char *path) {
  log_fd = strcmp(path, "-") == 0 ? 1 : open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log_fd < 0) die(path);
}

static pthread_t start_thread(void *(*run)(void *), void *argument) {
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  if (pthread_create(&thread, NULL, run, argument) != 0) die("thread");
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return thread;
}

/* ---- memory ---- */

static uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/* Odd, so that no difference is lost, and different for every place, so that two swapped pages are noticed. */
static uint64_t weight(uint64_t page) { return (page * 0x9e3779b97f4a7c15ULL) | 1; }

static void fill_page(uint64_t *words, uint64_t page, uint64_t version) {
  uint64_t x = mix(seed + page * 0xd6e8feb86659fd93ULL + version * 0xa0761d6478bd642fULL);
  words[0] = version;
  for (int i = 1; i < WORDS; i++) {
    x += 0x9e3779b97f4a7c15ULL;
    words[i] = compressible && i > COMPRESSIBLE_WORDS ? words[i - COMPRESSIBLE_WORDS] : mix(x);
  }
}

static uint64_t next_random(void) {
  static uint64_t state;
  return mix(seed ^ (state += 0x9e3779b97f4a7c15ULL));
}

static void write_page(uint64_t page) {
  uint64_t *words = memory + page * WORDS;
  fill_page(words, page, words[0] + 1);
  expected += weight(page);
  writes++;
}

static void write_checksum(uint64_t tick) {
  static uint64_t wanted[WORDS];
  uint64_t found = 0, bad = 0, first = 0;
  for (uint64_t page = 0; page < pages; page++) {
    uint64_t *words = memory + page * WORDS;
    found += words[0] * weight(page);
    fill_page(wanted, page, words[0]);
    if (memcmp(words, wanted, PAGE) == 0) continue;
    if (bad++ == 0) first = page;
  }
  char text[256];
  int length = bad == 0 && found == expected
                   ? snprintf(text, sizeof text, "checksum ok %016llx at %llu\n", (unsigned long long)found,
                              (unsigned long long)tick)
                   : snprintf(text, sizeof text, "checksum BAD pages %llu first %llu sum %016llx expected %016llx at %llu\n",
                              (unsigned long long)bad, (unsigned long long)first, (unsigned long long)found,
                              (unsigned long long)expected, (unsigned long long)tick);
  write_all(text, (size_t)length);
}

/* ---- answers ---- */

static int answer(int fd) {
  char asked[256];
  ssize_t count = recv(fd, asked, sizeof asked, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
  if (count <= 0) return 0;
  uint64_t reply = atomic_load(&ticks);
  for (ssize_t i = 0; i < count; i++)
    if (send(fd, &reply, sizeof reply, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof reply) return 0;
  return 1;
}

static void *serve(void *argument) {
  struct pollfd fds[CLIENTS_MAX + 1] = {{.fd = *(int *)argument, .events = POLLIN}};
  int count = 1;
  while (!end_wanted) {
    if (poll(fds, (nfds_t)count, -1) < 0) continue;
    for (int i = count - 1; i > 0; i--) {
      if (fds[i].revents == 0 || answer(fds[i].fd)) continue;
      close(fds[i].fd);
      fds[i] = fds[--count];
    }
    if (fds[0].revents == 0) continue;
    int fd = accept(fds[0].fd, NULL, NULL);
    if (fd < 0) continue;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (count > CLIENTS_MAX) close(fd);
    else fds[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
  }
  return NULL;
}

static void listen_on(int port) {
  static int fd;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  int on = 1;
  fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 64) < 0) die("listening");
  start_thread(serve, &fd);
}

/* ---- hold ---- */

static void on_signal(int number) {
  if (number == SIGUSR1) checksum_wanted = 1;
  else end_wanted = 1;
}

static void handle(int number) {
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(number, &action, NULL);
}

/* The next whole period after now: what was missed is skipped. */
static int64_t sleep_until_next(int64_t period_ns) {
  int64_t deadline = (now_ns() / period_ns + 1) * period_ns;
  struct timespec due = {deadline / 1000000000, deadline % 1000000000};
  while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &due, NULL) == EINTR && !end_wanted) continue;
  return now_ns();
}

struct settings {
  uint64_t size_mib, zero_mib, hot_percent;
  int64_t dirty_bytes_s, read_bytes_s;
  int port;
  const char *log;
};

static void *map(uint64_t bytes) {
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) die("memory");
  return at;
}

static void make_memory(const struct settings *s) {
  pages = s->size_mib * (1048576 / PAGE);
  /* Another one at each start: what an earlier service held must be of no use to whoever moves this one. */
  seed = mix((uint64_t)now_ns());
  if (pages > 0) memory = map(pages * PAGE);
  for (uint64_t page = 0; page < pages; page++) write_page(page);
  writes = 0;
  if (s->zero_mib == 0) return;
  volatile uint64_t *zeros = map(s->zero_mib * 1048576);
  for (uint64_t at = 0; at < s->zero_mib * (1048576 / 8); at += WORDS) zeros[at] = 0;
}

/* How many whole pages are due by now, at this rate. */
static uint64_t due_pages(int64_t bytes_s, int64_t passed_ns, double *owed) {
  if (bytes_s == 0 || pages == 0) return 0;
  if (passed_ns > OWED_NS_MAX) passed_ns = OWED_NS_MAX;
  *owed += (double)bytes_s * (double)passed_ns / 1e9 / PAGE;
  uint64_t whole = (uint64_t)*owed;
  *owed -= (double)whole;
  return whole;
}

static void hold(const struct settings *s) {
  open_log(s->log);
  make_memory(s);
  handle(SIGUSR1);
  start_thread(write_log, NULL);
  if (s->port > 0) listen_on(s->port);
  uint64_t hot = pages * s->hot_percent / 100, sink = 0;
  if (hot == 0) hot = pages;
  double owed_writes = 0, owed_reads = 0;
  int64_t before_ns = now_ns();
  for (uint64_t tick = 0;; tick++) {
    int64_t at_ns = sleep_until_next(TICK_NS), passed_ns = at_ns - before_ns;
    atomic_store(&ticks, tick);
    note_if_due(tick, at_ns, before_ns, TICK_NS, atomic_load(&writes));
    before_ns = at_ns;
    for (uint64_t n = due_pages(s->dirty_bytes_s, passed_ns, &owed_writes); n > 0; n--) write_page(next_random() % hot);
    for (uint64_t n = due_pages(s->read_bytes_s, passed_ns, &owed_reads); n > 0; n--)
      sink += *(volatile uint64_t *)(memory + next_random() % pages * WORDS);
    if (!checksum_wanted) continue;
    checksum_wanted = 0;
    write_checksum(tick);
  }
  (void)sink;
}

static uint64_t number(const char *text) {
  char *end;
  errno = 0;
  uint64_t value = strtoull(text, &end, 10);
  if (errno != 0 || end == text || *end != 0 || text[0] == '-' || value > 1000000000) {
    fprintf(stderr, "pulse: \"%s\" is not a number\n", text);
    exit(2);
  }
  return value;
}

static int usage(void) {
  fprintf(stderr, "usage: pulse hold --size MIB [--dirty KB_S] [--hot PERCENT] [--read KB_S] [--zero MIB]\n"
                  "                  [--compressible] [--port N] --log FILE\n"
                  "       pulse ask ADDRESS PORT EVERY_US LOG\n");
  return 2;
}

static int hold_with(int argc, char **argv) {
  struct settings s = {.hot_percent = 100};
  for (int i = 2; i < argc; i++) {
    if (strcmp(argv[i], "--compressible") == 0) {
      compressible = 1;
      continue;
    }
    const char *name = argv[i];
    if (++i == argc) return usage();
    if (strcmp(name, "--log") == 0) s.log = argv[i];
    else if (strcmp(name, "--size") == 0) s.size_mib = number(argv[i]);
    else if (strcmp(name, "--zero") == 0) s.zero_mib = number(argv[i]);
    else if (strcmp(name, "--hot") == 0) s.hot_percent = number(argv[i]);
    else if (strcmp(name, "--dirty") == 0) s.dirty_bytes_s = (int64_t)number(argv[i]) * 1000;
    else if (strcmp(name, "--read") == 0) s.read_bytes_s = (int64_t)number(argv[i]) * 1000;
    else if (strcmp(name, "--port") == 0) s.port = (int)number(argv[i]);
    else return usage();
  }
  if (s.log == NULL || s.hot_percent > 100 || s.port > 65535) return usage();
  hold(&s);
  return 0;
}

/* ---- ask ---- */

static int connected(const struct sockaddr_in *to) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  if (fd < 0) die("socket");
  struct timeval limit = {ANSWER_LIMIT_MS / 1000, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(fd, (const struct sockaddr *)to, sizeof *to) == 0) return fd;
  close(fd);
  return -1;
}

static int asked(int fd, uint64_t *tick) {
  if (send(fd, "?", 1, MSG_NOSIGNAL) != 1) return 0;
  return recv(fd, tick, sizeof *tick, MSG_WAITALL) == sizeof *tick;
}

static int ask(const char *host, int port, int64_t period_ns, const char *log) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  if (inet_pton(AF_INET, host, &to.sin_addr) != 1 || period_ns < 1000) return usage();
  open_log(log);
  handle(SIGTERM);
  handle(SIGINT);
  pthread_t writer = start_thread(write_log, NULL);
  uint64_t answers = 0, reconnects = 0, backwards = 0, last = 0;
  int64_t before_ns = 0;
  int fd = -1;
  while (!end_wanted) {
    uint64_t tick = 0;
    if (fd < 0) fd = connected(&to);
    if (fd < 0 || !asked(fd, &tick)) {
      if (fd >= 0) close(fd);
      fd = -1;
      reconnects++;
      struct timespec rest = {0, RECONNECT_NS};
      nanosleep(&rest, NULL);
      continue;
    }
    int64_t at_ns = now_ns();
    note_if_due(answers++, at_ns, before_ns, period_ns, tick);
    before_ns = at_ns;
    if (tick < last) backwards++;
    last = tick;
    sleep_until_next(period_ns);
  }
  pthread_join(writer, NULL);
  flush_ring();
  char text[128];
  write_all(text, (size_t)snprintf(text, sizeof text, "end answers %llu reconnects %llu backwards %llu\n",
                                   (unsigned long long)answers, (unsigned long long)reconnects,
                                   (unsigned long long)backwards));
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "hold") == 0) return hold_with(argc, argv);
  if (argc == 6 && strcmp(argv[1], "ask") == 0)
    return ask(argv[2], (int)number(argv[3]), (int64_t)number(argv[4]) * 1000, argv[5]);
  return usage();
}
