/*
 * mutator: changes its own memory in every way a program can, from several threads, in random order, until it is killed.
 *
 *   mutator SEED MIB FORKS
 *
 * Writers store single words; one thread maps, unmaps, moves, resizes, protects, drops, forks and lets the kernel write
 * (read, readv, getrandom, futex, process_vm_writev). Prints "ready" when all memory is filled. With FORKS, up to three
 * children live at a time and write too. What it holds means nothing: a test compares it from outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, REGIONS = 48, WRITERS = 2, CHILDREN = 3, PAGES_MAX = 768 };
struct region {
  uint8_t *at;
  size_t pages;
  int writable;
};
static struct region regions[REGIONS];
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static unsigned long long seed;
static size_t total_pages, wanted_pages;
static pid_t children[CHILDREN];
static int zero_fd, random_fd, forks;

static __thread uint64_t state;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}
static size_t below(size_t limit) { return limit == 0 ? 0 : next() % limit; }

static void store(struct region *region) {
  if (region->at == NULL || !region->writable) return;
  uint64_t *word = (uint64_t *)(region->at + below(region->pages) * PAGE + below(PAGE / 8) * 8);
  *word = below(8) == 0 ? 0 : next();
}

static void *writer(void *argument) {
  state = seed * 7919 + (uintptr_t)argument * 104729 + 1;
  for (;;) {
    pthread_rwlock_rdlock(&lock);
    for (int i = 0; i < 64; i++) store(&regions[below(REGIONS)]);
    pthread_rwlock_unlock(&lock);
    if (below(4) == 0) usleep((useconds_t)below(300));
  }
  return NULL;
}

static void forget(struct region *region) {
  total_pages -= region->pages;
  *region = (struct region){0};
}

static void map_new(struct region *region) {
  size_t pages = 1 + below(PAGES_MAX);
  if (total_pages + pages > wanted_pages) return;
  uint8_t *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return;
  if (below(4) == 0) madvise(at, pages * PAGE, MADV_HUGEPAGE);
  *region = (struct region){at, pages, 1};
  total_pages += pages;
  if (below(2) == 0) memset(at, (int)next(), pages * PAGE);
}

static void unmap_end(struct region *region) {
  size_t left = below(region->pages + 1);
  munmap(region->at + left * PAGE, (region->pages - left) * PAGE);
  total_pages -= region->pages - left;
  region->pages = left;
  if (left == 0) forget(region);
}

static void map_over(struct region *region) {
  size_t first = below(region->pages), count = 1 + below(region->pages - first);
  mmap(region->at + first * PAGE, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void move(struct region *region, struct region *over) {
  size_t pages = 1 + below(PAGES_MAX);
  if (total_pages + pages > wanted_pages + PAGES_MAX) return;
  void *at;
  if (over->at != NULL && over != region && over->pages >= region->pages && below(2) == 0) {
    at = mremap(region->at, region->pages * PAGE, region->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, over->at);
    if (at == MAP_FAILED) {
      /* What was there may be gone already, and part of the region may have moved. */
      munmap(over->at, over->pages * PAGE);
      munmap(region->at, region->pages * PAGE);
      forget(over);
      forget(region);
      return;
    }
    if (over->pages > region->pages) munmap(over->at + region->pages * PAGE, (over->pages - region->pages) * PAGE);
    forget(over);
    region->at = at;
    return;
  }
  at = mremap(region->at, region->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
  if (at == MAP_FAILED) return;
  total_pages += pages - region->pages;
  region->at = at;
  region->pages = pages;
}

static void leave_behind(struct region *region) {
  void *at = mremap(region->at, region->pages * PAGE, region->pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
  if (at == MAP_FAILED) return;
  munmap(at, region->pages * PAGE);
}

static void advise(struct region *region) {
  static const int advice[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ,
                               MADV_POPULATE_WRITE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_UNMERGEABLE,
                               25 /* COLLAPSE */, 102 /* GUARD_INSTALL */, 103 /* GUARD_REMOVE */};
  size_t first = below(region->pages), count = 1 + below(region->pages - first);
  int what = advice[below(sizeof advice / sizeof *advice)];
  if (what == 102) {
    /* Nobody may touch a guarded page: put up and taken away in one step. */
    madvise(region->at + first * PAGE, count * PAGE, 102);
    what = 103;
  }
  madvise(region->at + first * PAGE, count * PAGE, what);
  if (below(2) == 0) (void)*(volatile uint8_t *)(region->at + first * PAGE);
}

static void protect(struct region *region) {
  region->writable = !region->writable;
  mprotect(region->at, region->pages * PAGE, region->writable ? PROT_READ | PROT_WRITE : PROT_READ);
}

static void kernel_writes(struct region *region) {
  if (!region->writable) return;
  size_t first = below(region->pages), count = 1 + below(region->pages - first);
  uint8_t *at = region->at + first * PAGE + below(PAGE - 64);
  struct iovec parts = {at, 64};
  uint8_t content[64];
  getrandom(content, sizeof content, 0);
  struct iovec source = {content, 64};
  switch (below(6)) {
    case 0: if (read(zero_fd, region->at + first * PAGE, count * PAGE) < 0) abort(); break;
    case 1: if (readv(random_fd, &parts, 1) < 0) abort(); break;
    case 2: if (getrandom(at, 64, 0) < 0) abort(); break;
    case 3:
      at = (uint8_t *)((uintptr_t)at & ~(uintptr_t)3);
      syscall(SYS_futex, at, FUTEX_WAKE_OP, 1, 1, at, FUTEX_OP(FUTEX_OP_SET, (int)below(2000), FUTEX_OP_CMP_EQ, 0));
      break;
    case 4: process_vm_writev(getpid(), &source, 1, &parts, 1, 0); break;
    default: {
      int ends[2];
      if (pipe(ends) != 0) return;
      if (write(ends[1], content, 64) == 64 && read(ends[0], at, 64) != 64) abort();
      close(ends[0]);
      close(ends[1]);
    }
  }
}

static void breed(void) {
  int which = (int)below(CHILDREN);
  if (children[which] != 0) {
    kill(children[which], SIGKILL);
    waitpid(children[which], NULL, 0);
    children[which] = 0;
    return;
  }
  pid_t child = fork();
  if (child > 0) children[which] = child;
  if (child != 0) return;
  /* Only this thread lives on here, and it holds the lock. */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  state = (uint64_t)getpid() * 31 + seed + 1;
  for (;;) {
    for (int i = 0; i < 64; i++) store(&regions[below(REGIONS)]);
    usleep((useconds_t)below(2000));
  }
}

static void change(void) {
  struct region *region = &regions[below(REGIONS)];
  if (region->at == NULL) return map_new(region);
  switch (below(forks ? 12 : 10)) {
    case 0: return unmap_end(region);
    case 1: return map_over(region);
    case 2: return move(region, &regions[below(REGIONS)]);
    case 3: return leave_behind(region);
    case 4: return protect(region);
    case 5: case 6: return advise(region);
    case 7: if (region->writable) memset(region->at + below(region->pages) * PAGE, (int)next(), PAGE); return;
    case 8: { if (below(20) == 0 && mlock(region->at, PAGE) == 0) munlock(region->at, PAGE); void *end = sbrk(0); if (below(2)) { if (sbrk(PAGE * 3) != (void *)-1) memset(end, 5, PAGE * 3); } else brk((char *)end - PAGE); return; }
    case 10: if (below(6) == 0) breed(); return;
    default: return kernel_writes(region);
  }
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  seed = strtoull(arguments[1], NULL, 10);
  wanted_pages = strtoull(arguments[2], NULL, 10) * 256;
  forks = atoi(arguments[3]);
  state = seed * 2654435761u + 1;
  zero_fd = open("/dev/zero", O_RDONLY);
  random_fd = open("/dev/urandom", O_RDONLY);
  sbrk(PAGE * 1000);
  for (int i = 0; i < REGIONS; i++) if (regions[i].at == NULL) map_new(&regions[i]);
  pthread_t thread;
  for (uintptr_t i = 0; i < WRITERS; i++) pthread_create(&thread, NULL, writer, (void *)i);
  puts("ready");
  fflush(stdout);
  for (;;) {
    pthread_rwlock_wrlock(&lock);
    change();
    pthread_rwlock_unlock(&lock);
    usleep((useconds_t)below(200));
  }
}
