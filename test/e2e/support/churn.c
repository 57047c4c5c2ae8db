/*
 * churn: memory whose every page can be proved, and processes that do to their address space what they like while it is
 * being filled. `churn MIB PROCESSES LOG`.
 *
 * Every process holds MIB of private memory, in which each word follows from the page and the process. Signals to the
 * first process, which passes them on:
 *   SIGUSR1  check everything
 *   SIGUSR2  at once: fork a child that checks everything; give a part up (madvise), move a part (mremap), unmap a part,
 *            write to a part, divide a mapping (mprotect), with threads touching the rest; then check everything. The child forks again, and once more to become another program
 * LOG gets a line for each: "PROCESS WHAT ok" or "PROCESS WHAT BAD page N".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PROCESSES_MAX = 16, THREADS = 4 };
enum what { KEPT, ZERO, GONE };

static size_t pages, moved_to;
static uint64_t *memory, *moved;
static unsigned char *is;
static int log_fd, self;
static pid_t children[PROCESSES_MAX];
static int child_count;
static volatile sig_atomic_t check_wanted, churn_wanted;

static uint64_t word(size_t page, size_t at) {
  uint64_t x = ((uint64_t)self << 56) ^ (page * 0x9e3779b97f4a7c15ULL) ^ (at * 0xbf58476d1ce4e5b9ULL);
  x ^= x >> 31;
  return page % 7 == 3 ? 0 : x * 0x94d049bb133111ebULL;
}

static void say(const char *format, ...) {
  char line[200];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (write(log_fd, line, length) != length) _exit(3);
}

static uint64_t *place(size_t page) {
  if (moved != NULL && page >= moved_to && page < moved_to + pages / 8) return moved + (page - moved_to) * WORDS;
  return memory + page * WORDS;
}

static long first_bad(size_t from, size_t to) {
  for (size_t page = from; page < to; page++) {
    if (is[page] == GONE) continue;
    uint64_t *words = place(page);
    for (size_t at = 0; at < WORDS; at++)
      if (words[at] != (is[page] == ZERO ? 0 : word(page, at))) return (long)page;
  }
  return -1;
}

static void check(const char *what) {
  long bad = first_bad(0, pages);
  if (bad < 0) say("%d %s ok\n", self, what);
  else say("%d %s BAD page %ld state %d\n", self, what, bad, is[bad]);
}

static void *check_slice(void *argument) {
  size_t slice = (size_t)argument;
  /* The lower half stays as it is: threads read it while the upper half is being churned. */
  return (void *)first_bad(pages / 2 * slice / THREADS, pages / 2 * (slice + 1) / THREADS);
}

static void mark(size_t from, size_t count, enum what what) { memset(is + from, what, count); }

static void churn(void) {
  pthread_t threads[THREADS];
  for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, check_slice, (void *)i);
  pid_t forked = fork();
  if (forked == 0) {
    check("forked");
    pid_t again = fork();
    if (again == 0) {
      check("forked-twice");
      _exit(0);
    }
    waitpid(again, NULL, 0);
    /* Its memory goes away while it is being filled. */
    if (fork() == 0) execl("/bin/busybox", "true", NULL);
    wait(NULL);
    _exit(0);
  }
  size_t eighth = pages / 8;
  for (size_t i = 0; i < 64; i++) { /* small pieces, between which pages go on to arrive */
    size_t from = 4 * eighth + i * eighth / 64, count = eighth / 64 / 2;
    if (madvise(memory + from * WORDS, count * PAGE, MADV_DONTNEED) != 0) say("%d madvise BAD\n", self);
    mark(from, count, ZERO);
  }
  moved_to = 5 * eighth;
  void *target = mmap(NULL, eighth * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  moved = mremap(memory + moved_to * WORDS, eighth * PAGE, eighth * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  if (moved == MAP_FAILED) say("%d mremap BAD\n", self);
  munmap(memory + 6 * eighth * WORDS, eighth / 2 * PAGE);
  mark(6 * eighth, eighth / 2, GONE);
  mprotect(memory + (6 * eighth + eighth / 2 + 3) * WORDS, 5 * PAGE, PROT_READ);
  for (size_t page = 7 * eighth; page < 7 * eighth + eighth / 2; page++) {
    for (size_t at = 0; at < WORDS; at++) memory[page * WORDS + at] = word(page, at);
  }
  for (size_t i = 0; i < THREADS; i++) {
    void *bad;
    pthread_join(threads[i], &bad);
    if ((long)bad >= 0) say("%d thread BAD page %ld\n", self, (long)bad);
  }
  check("churned");
  int status;
  waitpid(forked, &status, 0);
  if (status != 0) say("%d child BAD status %d\n", self, status);
}

static void on_signal(int number) {
  if (number == SIGUSR1) check_wanted = 1;
  else churn_wanted = 1;
  for (int i = 0; i < child_count; i++) kill(children[i], number);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  pages = strtoull(argv[1], NULL, 10) * 256;
  int processes = atoi(argv[2]);
  log_fd = open(argv[3], O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log_fd < 0 || processes > PROCESSES_MAX) return 1;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigset_t both, before;
  sigemptyset(&both);
  sigaddset(&both, SIGUSR1);
  sigaddset(&both, SIGUSR2);
  sigprocmask(SIG_BLOCK, &both, &before);
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGUSR2, &action, NULL);
  for (int i = 1; i < processes; i++) {
    pid_t child = fork();
    if (child == 0) {
      self = i;
      child_count = 0;
      break;
    }
    children[child_count++] = child;
  }
  memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  is = calloc(1, pages);
  if (memory == MAP_FAILED || is == NULL) return 1;
  madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
  for (size_t page = 0; page < pages; page++)
    for (size_t at = 0; at < WORDS; at++) memory[page * WORDS + at] = word(page, at);
  say("%d ready ok\n", self);
  for (;;) {
    sigsuspend(&before);
    if (check_wanted) check_wanted = 0, check("checked");
    if (churn_wanted) churn_wanted = 0, churn();
  }
}
