/*
 * growing: a program whose memory grows while it computes. It runs a recurrent convolutional network over a stream of
 * pictures, as a detector runs over the frames of a camera, and keeps every result.
 *
 *   growing [--start MIB] [--rate KB_S] --log FILE
 *
 * One step takes the next picture, adds the result of the step before, and convolves the 8 channels of 16 x 16 points with
 * 3 x 3 kernels into 16 channels: 8-bit numbers, leaky rectifier, about 300,000 multiplications. A result is one page of
 * 4 KiB, and every result depends on all those before it. --start MIB of them are computed before the first tick, and
 * then so many a second that memory grows by --rate.
 *
 * Progress is a tick a millisecond by the clock, and the log is written as that of pulse (pulse.c): "beat N SECONDS 0 PAGES"
 * for every hundredth tick, "late N SECONDS GAP_US PAGES" for one that came later than two periods after the one before. A tick comes
 * after the computation that was due, so a standstill of the computation is a gap. What was due while it stood still is not made
 * up for.
 *
 * On SIGUSR1 the whole computation is done again from its beginning and each result compared with the one that was kept:
 * "checksum ok SUM at N" or "checksum BAD pages P first Q at N". So one wrong bit, anywhere in its memory or at any time, is found.
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

enum {
  PAGE = 4096,
  SIDE = 16,
  POINTS = SIDE * SIDE,
  IN = 8,
  OUT = 16,
  PADDED = SIDE + 2,
  SHIFT = 5,
  LEAK = 8,
  BLOCK_PAGES = 256,
  BLOCKS_MAX = 65536,
  BEAT = 100,
  OWED_NS_MAX = 20000000,
};
static const int64_t TICK_NS = 1000000;
_Static_assert(OUT * POINTS == PAGE, "a result is a page");

static int8_t kernels[OUT][IN][3][3];
/* Mapped one after another as they are needed: memory that is not needed yet is not there. */
static int8_t *blocks[BLOCKS_MAX];
static uint64_t pages, seed;
static int log_fd = -1;
static volatile sig_atomic_t checksum_wanted;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void die(const char *what) {
  fprintf(stderr, "growing: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void write_line(const char *text, int length) {
  ssize_t done;
  while ((done = write(log_fd, text, (size_t)length)) < 0 && errno == EINTR) continue;
  if (done != length) exit(3);
}

static uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/* ---- the network ---- */

static void make_kernels(void) {
  int8_t *weight = &kernels[0][0][0][0];
  for (size_t i = 0; i < sizeof kernels; i++) weight[i] = (int8_t)(mix(seed + i) % 16) - 8;
}

/* The picture of a step and the result before it, with a rim of zeroes around each channel. */
static void make_input(int8_t input[IN][PADDED][PADDED], uint64_t step, const int8_t *before) {
  memset(input, 0, (size_t)IN * PADDED * PADDED);
  for (int c = 0; c < IN; c++) {
    for (int y = 0; y < SIDE; y++) {
      int8_t picture[SIDE];
      for (int half = 0; half < 2; half++) {
        uint64_t noise = mix(seed ^ mix((step * IN + (uint64_t)c) * SIDE * 2 + (uint64_t)(y * 2 + half)));
        memcpy(picture + half * 8, &noise, 8);
      }
      for (int x = 0; x < SIDE; x++) {
        int sum = picture[x];
        if (before != NULL) sum += before[c * POINTS + y * SIDE + x] + before[(c + IN) * POINTS + y * SIDE + x];
        input[c][y + 1][x + 1] = (int8_t)(uint8_t)sum;
      }
    }
  }
}

static int8_t activate(int32_t sum) {
  int32_t value = sum >> SHIFT;
  if (value < 0) value /= LEAK;
  return (int8_t)(value > 127 ? 127 : value);
}

static void compute(int8_t *result, uint64_t step, const int8_t *before) {
  static int8_t input[IN][PADDED][PADDED];
  make_input(input, step, before);
  for (int out = 0; out < OUT; out++) {
    int32_t sums[SIDE][SIDE] = {{0}};
    for (int in = 0; in < IN; in++)
      for (int ky = 0; ky < 3; ky++)
        for (int kx = 0; kx < 3; kx++) {
          int32_t weight = kernels[out][in][ky][kx];
          for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++) sums[y][x] += weight * input[in][y + ky][x + kx];
        }
    for (int i = 0; i < POINTS; i++) result[out * POINTS + i] = activate((&sums[0][0])[i]);
  }
}

/* ---- what is kept ---- */

static int8_t *page_at(uint64_t page) { return blocks[page / BLOCK_PAGES] + page % BLOCK_PAGES * PAGE; }

static void keep_one_more(void) {
  uint64_t block = pages / BLOCK_PAGES;
  if (block >= BLOCKS_MAX) {
    fprintf(stderr, "growing: it has grown as far as it can\n");
    exit(4);
  }
  if (blocks[block] == NULL) {
    void *at = mmap(NULL, BLOCK_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("memory");
    blocks[block] = at;
  }
  compute(page_at(pages), pages, pages == 0 ? NULL : page_at(pages - 1));
  pages++;
}

static void write_checksum(uint64_t tick) {
  static int8_t wanted[2][PAGE];
  uint64_t sum = 0, bad = 0, first = 0;
  for (uint64_t page = 0; page < pages; page++) {
    int8_t *now = wanted[page % 2];
    compute(now, page, page == 0 ? NULL : wanted[(page + 1) % 2]);
    for (int i = 0; i < PAGE; i++) sum = sum * 31 + (uint8_t)now[i];
    if (memcmp(now, page_at(page), PAGE) != 0 && bad++ == 0) first = page;
  }
  char text[160];
  int length = bad == 0 ? snprintf(text, sizeof text, "checksum ok %016llx at %llu\n", (unsigned long long)sum,
                                   (unsigned long long)tick)
                        : snprintf(text, sizeof text, "checksum BAD pages %llu first %llu at %llu\n",
                                   (unsigned long long)bad, (unsigned long long)first, (unsigned long long)tick);
  write_line(text, length);
}

/* ---- ticks ---- */

static void on_usr1(int number) {
  (void)number;
  checksum_wanted = 1;
}

static void note_if_due(uint64_t tick, int64_t at_ns, int64_t before_ns) {
  int64_t gap_ns = tick == 0 ? 0 : at_ns - before_ns;
  int late = gap_ns > 2 * TICK_NS;
  if (!late && tick % BEAT != 0) return;
  char text[128];
  int length = snprintf(text, sizeof text, "%s %llu %lld.%06lld %lld %llu\n", late ? "late" : "beat",
                        (unsigned long long)tick, (long long)(at_ns / 1000000000),
                        (long long)(at_ns % 1000000000 / 1000), (long long)(late ? gap_ns / 1000 : 0),
                        (unsigned long long)pages);
  write_line(text, length);
}

/* The next whole period after now, by real time, which means the same on the host it moves to. */
static int64_t sleep_until_next(void) {
  int64_t deadline = (now_ns() / TICK_NS + 1) * TICK_NS;
  struct timespec due = {deadline / 1000000000, deadline % 1000000000};
  while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &due, NULL) == EINTR) continue;
  return now_ns();
}

static void grow(int64_t bytes_s) {
  double owed = 0;
  int64_t slept_ns = now_ns(), before_ns = slept_ns;
  for (uint64_t tick = 0;; tick++) {
    int64_t woken_ns = sleep_until_next(), passed_ns = woken_ns - slept_ns;
    slept_ns = woken_ns;
    owed += (double)bytes_s * (double)(passed_ns > OWED_NS_MAX ? OWED_NS_MAX : passed_ns) / 1e9 / PAGE;
    for (; owed >= 1; owed -= 1) keep_one_more();
    int64_t at_ns = now_ns();
    note_if_due(tick, at_ns, before_ns);
    before_ns = at_ns;
    if (!checksum_wanted) continue;
    checksum_wanted = 0;
    write_checksum(tick);
  }
}

static int usage(void) {
  fprintf(stderr, "usage: growing [--start MIB] [--rate KB_S] --log FILE\n");
  return 2;
}

int main(int argc, char **argv) {
  const char *log = NULL;
  uint64_t start_mib = 0, rate_kb_s = 4096;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--log") == 0) log = argv[i + 1];
    else if (strcmp(argv[i], "--start") == 0) start_mib = strtoull(argv[i + 1], NULL, 10);
    else if (strcmp(argv[i], "--rate") == 0) rate_kb_s = strtoull(argv[i + 1], NULL, 10);
    else return usage();
  }
  if (log == NULL || argc % 2 == 0) return usage();
  log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (log_fd < 0) die(log);
  /* Another one at each start: what an earlier service held must be of no use to whoever moves this one. */
  seed = mix((uint64_t)now_ns());
  make_kernels();
  while (pages < start_mib * (1048576 / PAGE)) keep_one_more();
  struct sigaction action = {.sa_handler = on_usr1};
  sigaction(SIGUSR1, &action, NULL);
  grow((int64_t)rate_kb_s * 1000);
}
