/*
 * memhog: holds random memory, dirties it at a chosen rate, and writes a log of its own progress.
 *
 *   memhog MIB DIRTY_KB_PER_S LOG [RANGE_PERCENT]
 *
 * LOG ("-" is standard output) gets one line a millisecond: "tick N SECONDS.MICROSECONDS" of the real-time clock, so the
 * longest gap between two lines is the downtime as the program saw it. Dirtying writes one word into each chosen page of
 * the first RANGE_PERCENT (100) of the memory; a page counts as 4 KiB.
 *
 * On SIGUSR1 it reads all of its memory and writes "checksum ok VALUE at N" or "checksum BAD VALUE expected VALUE at N":
 * the expected one was carried along with every write, so it covers dirtied and untouched pages, their content and their
 * place.
 *
 * Sleeps are relative. An absolute one would be restarted with its old deadline on a host with another uptime.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { TICK_NS = 1000000, LATE_NS_MAX = 10 * TICK_NS, PAGE = 4096, WORDS_PER_PAGE = PAGE / 8 };

static volatile sig_atomic_t checksum_wanted;
static uint64_t random_state = 88172645463325252ULL;
static uint64_t *memory;
static size_t words;
static uint64_t expected;
static int log_fd;

static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

/* Odd, so that no difference is lost, and different for every place, so that two swapped words are noticed. */
static uint64_t weight(size_t index) { return ((uint64_t)index * 0x9e3779b97f4a7c15ULL) | 1; }

static void on_usr1(int number) {
  (void)number;
  checksum_wanted = 1;
}

static int64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void write_line(const char *line, int length) {
  if (write(log_fd, line, (size_t)length) != length) exit(3);
}

static void write_checksum(uint64_t tick) {
  uint64_t found = 0;
  for (size_t i = 0; i < words; i++) found += memory[i] * weight(i);
  char line[160];
  int length = found == expected
                   ? snprintf(line, sizeof line, "checksum ok %016llx at %llu\n", (unsigned long long)found,
                              (unsigned long long)tick)
                   : snprintf(line, sizeof line, "checksum BAD %016llx expected %016llx at %llu\n",
                              (unsigned long long)found, (unsigned long long)expected, (unsigned long long)tick);
  write_line(line, length);
}

static void dirty_one_page(size_t pages) {
  if (pages == 0) return;
  size_t index = next_random() % pages * WORDS_PER_PAGE + next_random() % WORDS_PER_PAGE;
  uint64_t value = next_random();
  expected += (value - memory[index]) * weight(index);
  memory[index] = value;
}

static void sleep_until(int64_t *deadline) {
  int64_t now = clock_ns(CLOCK_MONOTONIC);
  *deadline += TICK_NS;
  if (*deadline - now > TICK_NS || now - *deadline > LATE_NS_MAX) *deadline = now + TICK_NS;
  if (*deadline <= now) return;
  struct timespec rest = {0, (long)(*deadline - now)};
  nanosleep(&rest, NULL);
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: memhog MIB DIRTY_KB_PER_S LOG [RANGE_PERCENT]\n");
    return 2;
  }
  words = strtoull(argv[1], NULL, 10) * (1048576 / 8);
  int64_t dirty_bytes_per_s = strtoll(argv[2], NULL, 10) * 1024;
  size_t range_pages = words / WORDS_PER_PAGE * (argc > 4 ? strtoull(argv[4], NULL, 10) : 100) / 100;
  log_fd = strcmp(argv[3], "-") == 0 ? 1 : open(argv[3], O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log_fd < 0) {
    fprintf(stderr, "memhog: %s: %s\n", argv[3], strerror(errno));
    return 1;
  }
  if (words > 0) {
    memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      fprintf(stderr, "memhog: no memory\n");
      return 1;
    }
  }
  for (size_t i = 0; i < words; i++) {
    memory[i] = next_random();
    expected += memory[i] * weight(i);
  }
  struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);

  int64_t deadline = clock_ns(CLOCK_MONOTONIC), owed_bytes = 0;
  for (uint64_t tick = 0;; tick++) {
    int64_t now = clock_ns(CLOCK_REALTIME);
    char line[80];
    int length = snprintf(line, sizeof line, "tick %llu %lld.%06lld\n", (unsigned long long)tick,
                          (long long)(now / 1000000000), (long long)(now % 1000000000 / 1000));
    write_line(line, length);
    for (owed_bytes += dirty_bytes_per_s / 1000; owed_bytes >= PAGE; owed_bytes -= PAGE) dirty_one_page(range_pages);
    if (checksum_wanted) {
      checksum_wanted = 0;
      write_checksum(tick);
    }
    sleep_until(&deadline);
  }
}
