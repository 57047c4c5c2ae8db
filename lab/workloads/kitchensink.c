// SPDX-License-Identifier: Apache-2.0
//
// kitchensink: a program that uses as many kinds of kernel state at once as a
// migration must carry, and that notices when any of it is not carried.
//
//   kitchensink [run] [--dir /data] [--mib 16] [--port 7777] [--bind 127.0.0.1]
//                     [--watch DIR] [--uid 0] [--tcp]
//                     [--periodic-timerfd] [--no-sysv]
//   kitchensink verify [--dir /data] [--interval-ms 300]
//   kitchensink status [--dir /data]
//
// Seven processes (a parent, five children, one grandchild) run threads; each
// thread repeats a list of steps every 5 ms. A step uses one kind of state,
// compares what it finds with what it can compute on its own, and advances its
// component's counter. The counters live in one anonymous shared mapping, the
// parent publishes them in DIR/status. A step that finds something wrong
// writes one VIOLATION line and the whole program ends with status 1.
//
// Nothing here measures time to decide that something is wrong: a program that
// was frozen must not blame itself. A component that stands still is found by
// counting the parent's own ticks, which stand still during a freeze as well.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef _Atomic uint64_t counter_t;

enum role { MAIN, PIPES, FILES, TIMERS, SHARED, GRANDCHILD, USER, ROLES };
static const char *const role_names[ROLES] = {"main",   "pipes",      "files", "timers",
                                              "shared", "grandchild", "user"};

// Every component once: its identifier here and its name in the status.
#define COMPONENTS(X)                                                                              \
  X(PIPE, "pipe") X(SOCKETPAIR, "socketpair") X(FIFO, "fifo") X(UNIX_IN, "unix_stream_to_server") \
  X(UNIX_OUT, "unix_stream_to_client") X(UNIX_CONNECT, "unix_connect") X(DATAGRAM, "unix_datagram") \
  X(LISTENER, "tcp_listener") X(TCP, "tcp_stream") X(ITIMER, "itimer")                             \
  X(POSIX_TIMER, "posix_timer") X(TIMERFD, "timerfd") X(NANOSLEEP, "nanosleep")                    \
  X(SIGNALFD, "signalfd") X(EVENTFD, "eventfd") X(EPOLL, "epoll") X(FUTEX, "futex")                \
  X(SIGUSR, "sigusr1") X(PENDING, "pending_signal") X(SHM_SYSV, "shm_sysv")                        \
  X(SHM_POSIX, "shm_posix") X(SHM_ANON, "shm_anonymous") X(OFFSET, "shared_offset")                \
  X(SEM_SYSV, "sem_sysv") X(SEM_POSIX, "sem_posix") X(DELETED, "deleted_file")                     \
  X(MMAP_SHARED, "mmap_shared") X(MMAP_PRIVATE, "mmap_private") X(APPEND, "append_log")            \
  X(DUP, "dup_offset") X(DIRFD, "directory_fd") X(LOCKS, "file_locks") X(INOTIFY, "inotify")       \
  X(ZOMBIE, "zombie") X(ORPHAN, "orphan") X(FPU, "floating_point")
#define AS_ID(id, name) C_##id,
#define AS_NAME(id, name) name,
enum component {
  COMPONENTS(AS_ID) C_NAMED,
  // These three exist once in every process.
  C_MEMORY = C_NAMED, C_IDENTITY = C_MEMORY + ROLES, C_CLOCK = C_IDENTITY + ROLES, C_TOTAL = C_CLOCK + ROLES
};
static const char *const component_names[C_NAMED] = {COMPONENTS(AS_NAME)};

enum stream { S_PIPE, S_SOCKETPAIR, S_FIFO, S_UNIX_IN, S_UNIX_OUT, S_DATAGRAM, S_TCP, STREAMS };
enum region { R_SYSV, R_POSIX, R_ANON, REGIONS };

// One exchange area between two processes: `asked` is advanced by one side
// only, `answered` by the other, and neither may run ahead.
struct exchange {
  counter_t asked, answered;
  u64 payload[62];
};

// What all processes share, and what the parent publishes.
struct shared {
  counter_t counter[C_TOTAL], violations, ticks;
  counter_t sent[STREAMS], received[STREAMS];
  counter_t usr1_sent, usr1_seen, orphans_made, sysv_turns, posix_turns;
  atomic_int stop, ready, pid[ROLES];
  sem_t turn[2];
  struct exchange anon;
};

static struct {
  const char *dir, *bind, *watch;
  unsigned mib, port, interval_ms, uid;
  int tcp, periodic_timerfd, no_sysv;
} options = {"/data", "127.0.0.1", "/dev/shm/kitchensink.watch", 16, 7777, 300, 0, 0, 0, 0};

static struct shared *shared;
static enum role role = MAIN;
static int violations_fd = -1;
static char boot_id[33], started_at[32];
static u64 generation;
static time_t started_realtime;

// ---------------------------------------------------------------- foundations

static const char *component_name(int c, char *buffer, size_t size) {
  static const char *const per_process[] = {"memory", "identity", "clock"};
  if (c < C_NAMED) return component_names[c];
  snprintf(buffer, size, "%s_%s", per_process[(c - C_NAMED) / ROLES], role_names[(c - C_NAMED) % ROLES]);
  return buffer;
}

// A violation ends the program, but through the parent: the process that saw
// it only leaves the line behind and stands still, so that its state stays.
// Once the program ends, its parts lose each other one by one, as they may.
__attribute__((format(printf, 2, 3))) static void violation(int component, const char *format, ...) {
  char name[48], what[256], line[384];
  if (atomic_load(&shared->stop)) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  int length = snprintf(line, sizeof line, "VIOLATION %s %s (in %s)\n",
                        component_name(component, name, sizeof name), what, role_names[role]);
  if (write(STDERR_FILENO, line, length) < 0) dprintf(violations_fd, "stderr is closed: %s\n", strerror(errno));
  if (write(violations_fd, line, length) < 0) fprintf(stderr, "the violations file is closed\n");
  atomic_fetch_add(&shared->violations, 1);
  if (role == MAIN && gettid() == getpid()) return;
  for (;;) pause();
}

#define CHECK(component, condition, ...) \
  do {                                   \
    if (!(condition)) violation(component, __VA_ARGS__); \
  } while (0)

// Only for the start: nothing has been promised yet, so a clear end is best.
__attribute__((format(printf, 1, 2), noreturn)) static void fatal(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "kitchensink: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, ": %s\n", strerror(errno));
  va_end(arguments);
  if (shared) atomic_store(&shared->stop, 2);
  _exit(2);
}

static int must(int result, const char *what) {
  if (result < 0) fatal("%s", what);
  return result;
}

static void advance(int component) { atomic_fetch_add(&shared->counter[component], 1); }
static u64 value(counter_t *c) { return atomic_load(c); }

// The one function all content comes from (splitmix64's finalizer).
static u64 mix(u64 a, u64 b) {
  u64 z = a * 0x9e3779b97f4a7c15u + b * 0xd1342543de82ef95u + 0x2545f4914f6cdd1du;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static void pause_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

static u64 now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (u64)t.tv_sec * 1000000000u + t.tv_nsec;
}

// A name in --dir; the buffer belongs to the thread because calls interleave.
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

// A restored process may see EINTR from calls that never return it otherwise
// (CRIU cannot carry the kernel's restart block), as any program must expect.
static int nothing_now(void) { return errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT; }

// -------------------------------------------------- streams with data in flight

// Each stream carries records whose content follows from stream and number.
// The receiver stops while `low` records are under way, so there is always
// something in the kernel's buffer for a dump to carry or lose.
struct record {
  u64 seq, words[7];
};
static const struct {
  enum component component;
  u64 low, high;
} stream_plan[STREAMS] = {
    [S_PIPE] = {C_PIPE, 24, 96},         [S_SOCKETPAIR] = {C_SOCKETPAIR, 24, 64},
    [S_FIFO] = {C_FIFO, 24, 64},         [S_UNIX_IN] = {C_UNIX_IN, 16, 48},
    [S_UNIX_OUT] = {C_UNIX_OUT, 16, 48}, [S_DATAGRAM] = {C_DATAGRAM, 3, 8},
    [S_TCP] = {C_TCP, 16, 48}};
static struct {
  size_t done;
  struct record record;
} outlet[STREAMS], inlet[STREAMS];
static int out_fd[STREAMS], in_fd[STREAMS];

static void fill_record(enum stream s, u64 seq, struct record *r) {
  r->seq = seq;
  for (int i = 0; i < 7; i++) r->words[i] = mix(s * 8 + i, seq);
}

static u64 under_way(enum stream s) { return value(&shared->sent[s]) - value(&shared->received[s]); }

static void send_records(enum stream s) {
  for (int budget = 16; budget > 0 && under_way(s) < stream_plan[s].high; budget--) {
    if (outlet[s].done == 0) fill_record(s, value(&shared->sent[s]) + 1, &outlet[s].record);
    ssize_t n = write(out_fd[s], (char *)&outlet[s].record + outlet[s].done, sizeof(struct record) - outlet[s].done);
    if (n < 0 && nothing_now()) return;
    if (n <= 0) return violation(stream_plan[s].component, "write: %s", strerror(errno));
    outlet[s].done += n;
    if (outlet[s].done < sizeof(struct record)) return;
    outlet[s].done = 0;
    atomic_fetch_add(&shared->sent[s], 1);
  }
}

static void receive_records(enum stream s) {
  enum component c = stream_plan[s].component;
  struct record expected;
  for (int budget = 16; budget > 0 && under_way(s) > stream_plan[s].low; budget--) {
    ssize_t n = read(in_fd[s], (char *)&inlet[s].record + inlet[s].done, sizeof(struct record) - inlet[s].done);
    // The sender counts after writing, so what it counted must be readable.
    if (n < 0 && errno == EAGAIN && s != S_TCP) return violation(c, "%lu records under way, none to read", (long)under_way(s));
    if (n < 0 && nothing_now()) return;
    if (n <= 0) return violation(c, "read: %s", n == 0 ? "end of file" : strerror(errno));
    inlet[s].done += n;
    if (inlet[s].done < sizeof(struct record)) continue;
    inlet[s].done = 0;
    fill_record(s, value(&shared->received[s]) + 1, &expected);
    CHECK(c, memcmp(&expected, &inlet[s].record, sizeof expected) == 0, "record %lu arrived as %lu",
          expected.seq, inlet[s].record.seq);
    atomic_fetch_add(&shared->received[s], 1);
    advance(c);
  }
}

static void nonblocking(int fd) { must(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), "fcntl"); }

static socklen_t unix_address(struct sockaddr_un *address, const char *name) {
  const char *path = at(name);
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address->sun_path) fatal("%s is too long for a socket", path);
  strcpy(address->sun_path, path);
  return sizeof *address;
}

static int bind_unix(int type, const char *name) {
  struct sockaddr_un address;
  int fd = must(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  socklen_t size = unix_address(&address, name);
  unlink(address.sun_path);
  must(bind(fd, (struct sockaddr *)&address, size), address.sun_path);
  must(chmod(address.sun_path, 0666), "chmod");
  return fd;
}

static int connect_unix(int type, const char *name) {
  struct sockaddr_un address;
  int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  socklen_t size = unix_address(&address, name);
  if (fd >= 0 && connect(fd, (struct sockaddr *)&address, size) == 0) return fd;
  int reason = errno;
  if (fd >= 0) close(fd);
  errno = reason;
  return -1;
}

static int connect_tcp(const char *host, unsigned port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct timeval limit = {2, 0};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  inet_pton(AF_INET, host, &address.sin_addr);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return fd;
}

static void open_streams(void) {
  int pair[2];
  must(pipe2(pair, O_CLOEXEC | O_NONBLOCK), "pipe2");
  // A size that is not the default, to see that it is carried too.
  must(fcntl(pair[0], F_SETPIPE_SZ, 32768), "F_SETPIPE_SZ");
  in_fd[S_PIPE] = pair[0], out_fd[S_PIPE] = pair[1];
  must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), "socketpair");
  in_fd[S_SOCKETPAIR] = pair[0], out_fd[S_SOCKETPAIR] = pair[1];
  unlink(at("fifo"));
  must(mkfifo(at("fifo"), 0640), "mkfifo");
  in_fd[S_FIFO] = must(open(at("fifo"), O_RDONLY | O_NONBLOCK | O_CLOEXEC), "fifo");
  out_fd[S_FIFO] = must(open(at("fifo"), O_WRONLY | O_NONBLOCK | O_CLOEXEC), "fifo");
  in_fd[S_DATAGRAM] = bind_unix(SOCK_DGRAM, "datagram.sock");
}

static void send_pipe(void) {
  CHECK(C_PIPE, fcntl(out_fd[S_PIPE], F_GETPIPE_SZ) == 32768, "the pipe's size changed");
  send_records(S_PIPE);
}
static void receive_pipe(void) { receive_records(S_PIPE); }
static void send_socketpair(void) { send_records(S_SOCKETPAIR); }
static void receive_socketpair(void) { receive_records(S_SOCKETPAIR); }
static void send_fifo(void) { send_records(S_FIFO); }
static void receive_fifo(void) { receive_records(S_FIFO); }
static void send_datagram(void) { send_records(S_DATAGRAM); }
static void receive_datagram(void) { receive_records(S_DATAGRAM); }

// ------------------------------------------------------- servers of the parent

static int unix_listener = -1, tcp_listener = -1;
static atomic_int unix_connected, tcp_connected;

static void open_servers(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
  int yes = 1;
  unix_listener = bind_unix(SOCK_STREAM, "stream.sock");
  must(listen(unix_listener, 16), "listen");
  tcp_listener = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
  setsockopt(tcp_listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (inet_pton(AF_INET, options.bind, &address.sin_addr) != 1) fatal("--bind %s", options.bind);
  must(bind(tcp_listener, (struct sockaddr *)&address, sizeof address), "bind of the TCP listener");
  must(listen(tcp_listener, 16), "listen");
}

// Every visitor is greeted with the program's name; one that answers S stays,
// any other is hung up on. The server speaks first because CRIU refuses a
// connection that waits to be accepted and already holds data (README.md).
static int receive_visitor(int listener) {
  struct timeval limit = {0, 500000};
  char wish = 0, greeting[64];
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  int length = snprintf(greeting, sizeof greeting, "kitchensink %s\n", boot_id);
  // A visitor that left before its greeting is no concern of ours.
  ssize_t n = send(fd, greeting, length, MSG_NOSIGNAL) == length ? -1 : 0;
  for (int tries = 0; n < 0 && tries < 3 && (n = read(fd, &wish, 1)) < 0 && errno == EINTR;) tries++;
  if (wish == 'S') {
    nonblocking(fd);
    return fd;
  }
  close(fd);
  errno = 0;
  return -1;
}

// Whether the one at the other end of a fresh connection is this program.
static int is_greeted(int fd) {
  char greeting[64] = "";
  ssize_t n = -1;
  for (int tries = 0; tries < 3 && (n = read(fd, greeting, sizeof greeting - 1)) < 0 && errno == EINTR;) tries++;
  return n > 12 && strncmp(greeting + 12, boot_id, 32) == 0;
}

static void serve_unix(void) {
  int fd = receive_visitor(unix_listener);
  if (fd >= 0) {
    in_fd[S_UNIX_IN] = out_fd[S_UNIX_OUT] = fd;
    atomic_store(&unix_connected, 1);
  }
  if (!atomic_load(&unix_connected)) return;
  receive_records(S_UNIX_IN);
  send_records(S_UNIX_OUT);
}

static void serve_tcp(void) {
  struct sockaddr_in address;
  socklen_t size = sizeof address, flag_size = sizeof(int);
  int listening = 0;
  getsockopt(tcp_listener, SOL_SOCKET, SO_ACCEPTCONN, &listening, &flag_size);
  getsockname(tcp_listener, (struct sockaddr *)&address, &size);
  CHECK(C_LISTENER, listening, "the listener does not listen");
  CHECK(C_LISTENER, ntohs(address.sin_port) == options.port, "the listener's port is %u", ntohs(address.sin_port));
  int fd = receive_visitor(tcp_listener);
  CHECK(C_LISTENER, fd >= 0 || errno != EINVAL, "accept: %s", strerror(errno));
  advance(C_LISTENER);
  if (fd >= 0) {
    in_fd[S_TCP] = fd;
    atomic_store(&tcp_connected, 1);
  }
  if (atomic_load(&tcp_connected)) receive_records(S_TCP);
}

static void open_clients(void) {
  out_fd[S_UNIX_IN] = in_fd[S_UNIX_OUT] = must(connect_unix(SOCK_STREAM, "stream.sock"), "connect to stream.sock");
  out_fd[S_DATAGRAM] = must(connect_unix(SOCK_DGRAM, "datagram.sock"), "connect to datagram.sock");
  nonblocking(out_fd[S_DATAGRAM]);
  if (options.tcp) out_fd[S_TCP] = must(connect_tcp(options.bind, options.port), "connect to the TCP listener");
}

static void stay_connected(int component, int fd) {
  CHECK(component, is_greeted(fd) && write(fd, "S", 1) == 1, "no greeting at the start (%s)", strerror(errno));
  nonblocking(fd);
}

static void use_clients(void) {
  static int staying;
  if (!staying) stay_connected(C_UNIX_IN, out_fd[S_UNIX_IN]);
  if (!staying && options.tcp) stay_connected(C_TCP, out_fd[S_TCP]);
  staying = 1;
  send_records(S_UNIX_IN);
  receive_records(S_UNIX_OUT);
  if (options.tcp) send_records(S_TCP);
}

// A new connection through the file system: the bound name must still lead to
// the listener, which is more than an established connection proves.
static void visit_unix(void) {
  int fd = connect_unix(SOCK_STREAM, "stream.sock");
  if (fd < 0 && nothing_now()) return;
  if (fd < 0) return violation(C_UNIX_CONNECT, "connect: %s", strerror(errno));
  CHECK(C_UNIX_CONNECT, is_greeted(fd), "the server's greeting is another's (%s)", strerror(errno));
  close(fd);
  advance(C_UNIX_CONNECT);
  pause_ms(15);
}

// --------------------------------------------------------------------- memory

// Three quarters of the memory never change after the start, one quarter is
// rewritten page by page, round and round. After n rewrites the version of
// every page is known from n alone, so no table could be lost together with
// the pages it describes.
enum { PAGE = 4096, WORDS = PAGE / 8 };
static u64 *memory, memory_pages, cold_pages, hot_pages, rewrites, cold_cursor;

static void memory_page(u64 page, u64 version, int write_it) {
  u64 *words = memory + page * WORDS, seed = mix(role + 1, page) ^ version;
  for (u64 i = 0; i < WORDS; i++) {
    if (write_it) words[i] = mix(seed, i);
    else if (words[i] != mix(seed, i))
      return violation(C_MEMORY + role, "page %lu version %lu word %lu is %016lx", page, version, i, words[i]);
  }
}

static void open_memory(void) {
  memory_pages = (u64)options.mib * 1048576 / PAGE;
  hot_pages = memory_pages / 4, cold_pages = memory_pages - hot_pages;
  memory = mmap(NULL, memory_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fatal("memory");
  for (u64 page = 0; page < memory_pages; page++) memory_page(page, 0, 1);
}

static void step_memory(void) {
  for (int i = 0; i < 24; i++) memory_page(cold_cursor++ % cold_pages, 0, 0);
  for (int i = 0; i < 6; i++, rewrites++) {
    u64 page = cold_pages + rewrites % hot_pages, version = rewrites / hot_pages;
    memory_page(page, version, 0);
    memory_page(page, version + 1, 1);
  }
  advance(C_MEMORY + role);
}

// ---------------------------------------------------- identity and the clocks

struct identity {
  char cwd[256], comm[16];
  int pid, parent, session, group, dumpable, keep_caps, subreaper, nice;
  uid_t uids[3];
  gid_t gids[3];
  u64 arguments, environment, status_lines;
  struct rlimit limits[RLIM_NLIMITS];
};
static struct identity identity;

static u64 hash(const char *bytes, size_t length, u64 h) {
  for (size_t i = 0; i < length; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
  return h;
}

static void look_at_identity(struct identity *me) {
  // Lines of the status in /proc that are nobody's business to change.
  static const char *const kept[] = {"Umask:", "Groups:", "SigIgn:", "SigCgt:", "Cap", "NoNewPrivs:", "Seccomp"};
  char text[16384], *line, *rest;
  memset(me, 0, sizeof *me);
  if (!getcwd(me->cwd, sizeof me->cwd)) me->cwd[0] = '?';
  prctl(PR_GET_NAME, me->comm);
  prctl(PR_GET_CHILD_SUBREAPER, &me->subreaper);
  me->dumpable = prctl(PR_GET_DUMPABLE), me->keep_caps = prctl(PR_GET_KEEPCAPS);
  me->pid = getpid(), me->parent = getppid(), me->session = getsid(0), me->group = getpgid(0);
  me->nice = getpriority(PRIO_PROCESS, 0);
  getresuid(&me->uids[0], &me->uids[1], &me->uids[2]);
  getresgid(&me->gids[0], &me->gids[1], &me->gids[2]);
  for (int i = 0; i < RLIM_NLIMITS; i++) getrlimit(i, &me->limits[i]);
  me->arguments = hash(text, read_whole("/proc/self/cmdline", text, sizeof text), 1);
  me->environment = hash(text, read_whole("/proc/self/environ", text, sizeof text), 1);
  for (int i = 0; environ[i]; i++) me->environment = hash(environ[i], strlen(environ[i]), me->environment);
  // This thread's own, since the main thread's mask changes in its handlers. Asked of the kernel: CRIU cannot open a
  // thread's files in /proc again, because it restores descriptors before threads.
  sigset_t blocked;
  memset(&blocked, 0, sizeof blocked);
  pthread_sigmask(SIG_BLOCK, NULL, &blocked);
  me->status_lines = hash((const char *)&blocked, sizeof blocked, 1);
  read_whole("/proc/self/status", text, sizeof text);
  for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
      if (strncmp(line, kept[i], strlen(kept[i])) == 0) me->status_lines = hash(line, strlen(line), me->status_lines);
}

static void step_identity(void) {
#define FIELD(name) {#name, offsetof(struct identity, name), sizeof identity.name}
  static const struct {
    const char *name;
    size_t offset, size;
  } fields[] = {FIELD(cwd), FIELD(comm), FIELD(pid), FIELD(parent), FIELD(session), FIELD(group),
                FIELD(dumpable), FIELD(keep_caps), FIELD(subreaper), FIELD(nice),
                FIELD(uids), FIELD(gids), FIELD(arguments), FIELD(environment), FIELD(status_lines), FIELD(limits)};
  static unsigned calls;
  if (calls++ % 8) return;  // Reading /proc is dear; every 40 ms will do.
  if (calls == 1) look_at_identity(&identity);
  struct identity current;
  look_at_identity(&current);
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    CHECK(C_IDENTITY + role,
          memcmp((char *)&identity + fields[i].offset, (char *)&current + fields[i].offset, fields[i].size) == 0,
          "%s changed (pid %d, parent %d, cwd %s)", fields[i].name, current.pid, current.parent, current.cwd);
  advance(C_IDENTITY + role);
}

static void step_clock(void) {
  static u64 last_monotonic, last_boot;
  u64 monotonic = now_ns(CLOCK_MONOTONIC), boot = now_ns(CLOCK_BOOTTIME);
  time_t real = time(NULL);
  CHECK(C_CLOCK + role, monotonic >= last_monotonic, "monotonic went from %lu to %lu", last_monotonic, monotonic);
  CHECK(C_CLOCK + role, boot >= last_boot, "boottime went from %lu to %lu", last_boot, boot);
  CHECK(C_CLOCK + role, real >= started_realtime - 60 && real < 7258118400, "realtime is %ld", (long)real);
  last_monotonic = monotonic, last_boot = boot;
  advance(C_CLOCK + role);
}

static void step_fpu(void) {
  static double first;
  volatile double sum = 0;
  for (int k = 1; k < 4000; k++) sum += 1.0 / ((double)k * k + 0.5);
  if (first == 0) first = sum;
  CHECK(C_FPU, memcmp(&first, (const void *)&sum, sizeof first) == 0, "%.17g is not %.17g", sum, first);
  advance(C_FPU);
}

// ---------------------------------------------------------- timers and signals

#define TIMER_SIGNAL (SIGRTMIN + 1)
#define SIGNALFD_SIGNAL (SIGRTMIN + 2)
#define PENDING_SIGNAL (SIGRTMIN + 3)
enum { TIMER_COOKIE = 0x5eed };
static const long interval_ns = 10000000;
static timer_t posix_timer;
static int epoll_fd, timer_fd, event_fd, signal_fd;

static void on_alarm(int number) {
  (void)number;
  advance(C_ITIMER);
}
static void on_usr1(int number) {
  (void)number;
  atomic_fetch_add(&shared->usr1_seen, 1);
  advance(C_SIGUSR);
}
static void on_timer(int number, siginfo_t *info, void *context) {
  (void)number, (void)context;
  if (info->si_code == SI_TIMER && info->si_value.sival_int == TIMER_COOKIE) advance(C_POSIX_TIMER);
  else violation(C_POSIX_TIMER, "the signal's value is %d", info->si_value.sival_int);
}

static void watch_fd(int fd) {
  // The upper half of the cookie shows that all 64 bits are carried.
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0xfeedull << 32 | (unsigned)fd};
  must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

// CRIU restores a periodic timerfd that had expired before the dump disarmed
// (README.md), so by default the timer is set again after every expiration;
// an expiration that was not read yet must then be found after the restore.
static void arm_timerfd(void) {
  struct itimerspec spec = {{0, options.periodic_timerfd ? interval_ns : 0}, {0, interval_ns}};
  CHECK(C_TIMERFD, timerfd_settime(timer_fd, 0, &spec, NULL) == 0, "timerfd_settime: %s", strerror(errno));
}

static void begin_timers(void) {
  struct itimerval every = {{0, interval_ns / 1000}, {0, interval_ns / 1000}};
  struct itimerspec spec = {{0, interval_ns}, {0, interval_ns}};
  struct sigaction on_signal = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
  struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TIMER_SIGNAL, .sigev_value.sival_int = TIMER_COOKIE};
  sigset_t set;
  sigaction(SIGALRM, &on_signal, NULL);
  on_signal.sa_handler = on_usr1;
  sigaction(SIGUSR1, &on_signal, NULL);
  on_signal = (struct sigaction){.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigaction(TIMER_SIGNAL, &on_signal, NULL);
  must(setitimer(ITIMER_REAL, &every, NULL), "setitimer");
  must(timer_create(CLOCK_MONOTONIC, &how, &posix_timer), "timer_create");
  must(timer_settime(posix_timer, 0, &spec, NULL), "timer_settime");
  epoll_fd = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  timer_fd = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC), "timerfd_create");
  arm_timerfd();
  event_fd = must(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
  sigemptyset(&set);
  sigaddset(&set, SIGNALFD_SIGNAL);
  signal_fd = must(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), "signalfd");
  watch_fd(timer_fd), watch_fd(event_fd), watch_fd(signal_fd);
}

static void step_intervals(void) {
  struct itimerval every;
  struct itimerspec spec;
  getitimer(ITIMER_REAL, &every);
  CHECK(C_ITIMER, every.it_interval.tv_usec * 1000 == interval_ns, "interval %ld us", (long)every.it_interval.tv_usec);
  CHECK(C_POSIX_TIMER, timer_gettime(posix_timer, &spec) == 0, "timer_gettime: %s", strerror(errno));
  CHECK(C_POSIX_TIMER, spec.it_interval.tv_nsec == interval_ns, "interval %ld ns", spec.it_interval.tv_nsec);
  timerfd_gettime(timer_fd, &spec);
  CHECK(C_TIMERFD, spec.it_interval.tv_nsec == (options.periodic_timerfd ? interval_ns : 0), "interval %ld ns", spec.it_interval.tv_nsec);
}

// The eventfd and the signalfd each hold one value from one round to the next.
static void step_epoll(void) {
  static u64 event_value, signal_value;
  struct epoll_event ready[4];
  struct signalfd_siginfo info;
  u64 got;
  if (event_value == 0) {
    event_value = 1 + mix(1, shared->counter[C_EVENTFD]) % 1000000;
    CHECK(C_EVENTFD, write(event_fd, &event_value, 8) == 8, "write: %s", strerror(errno));
  }
  if (signal_value == 0) {
    signal_value = 1 + mix(2, shared->counter[C_SIGNALFD]) % 1000000;
    CHECK(C_SIGNALFD, sigqueue(getpid(), SIGNALFD_SIGNAL, (union sigval){.sival_int = signal_value}) == 0, "sigqueue: %s", strerror(errno));
  }
  pause_ms(3);
  int n = epoll_wait(epoll_fd, ready, 4, 20);
  CHECK(C_EPOLL, n >= 0 || errno == EINTR, "epoll_wait: %s", strerror(errno));
  for (int i = 0; i < n; i++) {
    int fd = (int)(ready[i].data.u64 & 0xffffffff);
    CHECK(C_EPOLL, ready[i].data.u64 >> 32 == 0xfeed, "cookie %lx", ready[i].data.u64);
    if (fd == timer_fd && read(fd, &got, 8) == 8) {
      CHECK(C_TIMERFD, got > 0 && (got == 1 || options.periodic_timerfd), "%lu expirations", got);
      if (!options.periodic_timerfd) arm_timerfd();
      advance(C_TIMERFD);
    } else if (fd == event_fd) {
      CHECK(C_EVENTFD, read(fd, &got, 8) == 8 && got == event_value, "not the value %lu", event_value);
      event_value = 0;
      advance(C_EVENTFD);
    } else if (fd == signal_fd) {
      CHECK(C_SIGNALFD, read(fd, &info, sizeof info) == sizeof info && info.ssi_int == (int)signal_value, "value %d instead of %lu", info.ssi_int, signal_value);
      signal_value = 0;
      advance(C_SIGNALFD);
    }
    advance(C_EPOLL);
  }
}

// A relative sleep may be cut short by EINTR, but never end early with success.
static void step_nanosleep(void) {
  u64 before = now_ns(CLOCK_MONOTONIC);
  struct timespec t = {0, 40000000};
  int result = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
  u64 slept = now_ns(CLOCK_MONOTONIC) - before;
  CHECK(C_NANOSLEEP, result == EINTR || slept >= 40000000, "slept %lu ns of 40000000", slept);
  u64 until = before + 80000000;
  struct timespec deadline = {until / 1000000000u, until % 1000000000u};
  result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL);
  CHECK(C_NANOSLEEP, result == EINTR || now_ns(CLOCK_MONOTONIC) >= until, "woke before the deadline");
  advance(C_NANOSLEEP);
}

// A blocked signal with a value stays pending from one call to the next.
static void step_pending(void) {
  static u64 rounds;
  static int waiting;
  siginfo_t info;
  sigset_t set, pending;
  sigemptyset(&set);
  sigaddset(&set, PENDING_SIGNAL);
  if (!waiting) {
    sigqueue(getpid(), PENDING_SIGNAL, (union sigval){.sival_int = (int)(mix(3, rounds) & 0xffffff)});
    waiting = 1;
    return;
  }
  CHECK(C_PENDING, sigpending(&pending) == 0 && sigismember(&pending, PENDING_SIGNAL), "the signal is not pending");
  int got = sigtimedwait(&set, &info, &(struct timespec){0, 0});
  if (got < 0 && errno == EINTR) return;
  CHECK(C_PENDING, got == PENDING_SIGNAL && info.si_value.sival_int == (int)(mix(3, rounds) & 0xffffff), "value %d", info.si_value.sival_int);
  waiting = 0, rounds++;
  advance(C_PENDING);
}

// Plain signals merge while pending, so the next is sent when one was seen.
static void send_usr1(void) {
  u64 sent = value(&shared->usr1_sent), seen = value(&shared->usr1_seen);
  CHECK(C_SIGUSR, seen <= sent, "%lu signals seen, %lu sent", seen, sent);
  if (seen < sent) return;
  atomic_fetch_add(&shared->usr1_sent, 1);
  CHECK(C_SIGUSR, kill(shared->pid[TIMERS], SIGUSR1) == 0, "kill: %s", strerror(errno));
}

static pthread_mutex_t futex_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t futex_turned = PTHREAD_COND_INITIALIZER;
static u64 futex_turns;

static void take_turn(u64 side) {
  pthread_mutex_lock(&futex_lock);
  while (futex_turns % 2 != side) pthread_cond_wait(&futex_turned, &futex_lock);
  futex_turns++;
  advance(C_FUTEX);
  CHECK(C_FUTEX, value(&shared->counter[C_FUTEX]) == futex_turns, "turn %lu was counted as %lu", futex_turns, value(&shared->counter[C_FUTEX]));
  pthread_cond_broadcast(&futex_turned);
  pthread_mutex_unlock(&futex_lock);
}
static void step_futex_even(void) { take_turn(0); }
static void step_futex_odd(void) { take_turn(1); }

// ------------------------------------------------- shared memory, semaphores

enum { SHM_KEY = 0x6b736d31, SEM_KEY = 0x6b736d32 };
static const char shm_name[] = "/kitchensink.shm";
static struct exchange *regions[REGIONS];
static int sysv_segment = -1, sysv_semaphores = -1, offset_fd = -1;

static void remove_ipc(void) {
  int id = shmget(SHM_KEY, 0, 0);
  if (id >= 0) shmctl(id, IPC_RMID, NULL);
  id = semget(SEM_KEY, 0, 0);
  if (id >= 0) semctl(id, 0, IPC_RMID);
  shm_unlink(shm_name);
}

static void open_ipc(void) {
  unsigned short start[2] = {1, 0};
  remove_ipc();  // What an earlier run left behind in the same namespace.
  if (!options.no_sysv) {
    sysv_segment = must(shmget(SHM_KEY, sizeof(struct exchange), IPC_CREAT | IPC_EXCL | 0600), "shmget");
    regions[R_SYSV] = shmat(sysv_segment, NULL, 0);
    sysv_semaphores = must(semget(SEM_KEY, 2, IPC_CREAT | IPC_EXCL | 0600), "semget");
    must(semctl(sysv_semaphores, 0, SETALL, start), "semctl");
  }
  int fd = must(shm_open(shm_name, O_CREAT | O_EXCL | O_RDWR, 0600), "shm_open");
  must(ftruncate(fd, sizeof(struct exchange)), "ftruncate");
  regions[R_POSIX] = mmap(NULL, sizeof(struct exchange), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  regions[R_ANON] = &shared->anon;
  if (regions[R_SYSV] == (void *)-1 || regions[R_POSIX] == MAP_FAILED) fatal("shared memory");
  must(sem_init(&shared->turn[0], 1, 1), "sem_init");
  must(sem_init(&shared->turn[1], 1, 0), "sem_init");
  offset_fd = must(open(at("offset"), O_CREAT | O_RDWR | O_CLOEXEC, 0600), "offset");
}

// The process `shared` asks, its child answers; each checks the other's part.
static void exchange_once(enum region r) {
  struct exchange *e = regions[r];
  enum component c = C_SHM_SYSV + r;
  u64 asked = value(&e->asked), answered = value(&e->answered);
  CHECK(c, asked == answered || asked == answered + 1, "asked %lu, answered %lu", asked, answered);
  if ((role == SHARED) != (asked == answered)) return;
  if (role == SHARED) {
    // One file description, two processes: the offset is theirs together.
    if (r == R_ANON) CHECK(C_OFFSET, lseek(offset_fd, asked + 1, SEEK_SET) == (off_t)asked + 1, "lseek: %s", strerror(errno));
    for (int i = 0; i < 62; i++) e->payload[i] = mix(r + 1000, asked + 1 + i);
    atomic_fetch_add(&e->asked, 1);
  } else {
    for (int i = 0; i < 62; i++) CHECK(c, e->payload[i] == mix(r + 1000, asked + i), "word %d of message %lu", i, asked);
    if (r == R_ANON) {
      CHECK(C_OFFSET, lseek(offset_fd, 0, SEEK_CUR) == (off_t)asked, "offset %ld, not %lu", (long)lseek(offset_fd, 0, SEEK_CUR), asked);
      advance(C_OFFSET);
    }
    atomic_fetch_add(&e->answered, 1);
    advance(c);
  }
}

static void step_exchange(void) {
  struct shmid_ds segment;
  for (int r = options.no_sysv ? R_POSIX : R_SYSV; r < REGIONS; r++) exchange_once(r);
  if (options.no_sysv) return;
  CHECK(C_SHM_SYSV, shmctl(sysv_segment, IPC_STAT, &segment) == 0, "IPC_STAT: %s", strerror(errno));
  CHECK(C_SHM_SYSV, segment.shm_perm.__key == SHM_KEY && segment.shm_nattch >= 2, "key %x, %lu attached", segment.shm_perm.__key, segment.shm_nattch);
}

static void count_turn(counter_t *turns, int side, enum component c) {
  CHECK(c, value(turns) % 2 == (u64)side, "turn %lu in the wrong process", value(turns));
  atomic_fetch_add(turns, 1);
  advance(c);
}

static void step_sysv_semaphores(int side) {
  unsigned short values[2];
  struct sembuf take = {side, -1, 0}, give = {1 - side, 1, 0};
  struct timespec limit = {0, 50000000};
  CHECK(C_SEM_SYSV, semctl(sysv_semaphores, 0, GETALL, values) == 0 && values[0] + values[1] <= 1, "values %d, %d", values[0], values[1]);
  if (semtimedop(sysv_semaphores, &take, 1, &limit) == 0) {
    count_turn(&shared->sysv_turns, side, C_SEM_SYSV);
    CHECK(C_SEM_SYSV, semop(sysv_semaphores, &give, 1) == 0, "semop: %s", strerror(errno));
  } else CHECK(C_SEM_SYSV, nothing_now(), "semtimedop: %s", strerror(errno));
}

static void step_semaphores(void) {
  int side = role == SHARED ? 0 : 1;
  struct timespec until;
  if (!options.no_sysv) step_sysv_semaphores(side);
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_nsec += 50000000;
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  if (sem_timedwait(&shared->turn[side], &until) == 0) {
    count_turn(&shared->posix_turns, side, C_SEM_POSIX);
    CHECK(C_SEM_POSIX, sem_post(&shared->turn[1 - side]) == 0, "sem_post: %s", strerror(errno));
  } else CHECK(C_SEM_POSIX, nothing_now(), "sem_timedwait: %s", strerror(errno));
}

// ---------------------------------------------------------------------- files

enum { RECORD = 64, RECORDS = 4096, MAPPED = RECORD * RECORDS, KEPT = PAGE / RECORD };
static int deleted_fd, mapped_fd, private_fd, log_fd, dup_fd[2], dir_fd, inotify_fd, flock_fd, fcntl_fd;
static u64 deleted_count, deleted_epoch, log_size;
static struct record *deleted_map, *mapped, *private_map;

static int create(const char *name, int flags) {
  return must(open(at(name), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC | flags, 0640), name);
}

static struct record file_record(enum component c, u64 seq) {
  struct record r;
  fill_record(STREAMS + c, seq, &r);
  return r;
}

static void *map_file(int fd, int flags) {
  void *map = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (map == MAP_FAILED) fatal("mmap");
  return map;
}

static void append_deleted(void) {
  u64 n = deleted_count++;
  struct record r = file_record(C_DELETED, n < KEPT ? n : n ^ deleted_epoch << 32);
  CHECK(C_DELETED, pwrite(deleted_fd, &r, RECORD, n * RECORD) == RECORD, "pwrite: %s", strerror(errno));
}

static void begin_files(void) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
  struct record r;
  deleted_fd = create("deleted", 0);
  must(unlink(at("deleted")), "unlink");
  while (deleted_count < KEPT) append_deleted();
  deleted_map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, deleted_fd, 0);
  mapped_fd = create("mapped", 0), private_fd = create("private", 0), dup_fd[0] = create("dup", 0);
  must(ftruncate(mapped_fd, MAPPED), "ftruncate");
  for (u64 i = 0; i < RECORDS; i++) {
    r = file_record(C_MMAP_PRIVATE, i);
    if (write(private_fd, &r, RECORD) != RECORD || write(dup_fd[0], &r, RECORD) != RECORD) fatal("write");
  }
  mapped = map_file(mapped_fd, MAP_SHARED), private_map = map_file(private_fd, MAP_PRIVATE);
  // Every second page of the private mapping is made our own.
  for (u64 i = 0; i < RECORDS; i++)
    if (i / KEPT % 2) private_map[i] = file_record(C_MMAP_PRIVATE, i + RECORDS);
  lseek(dup_fd[0], 0, SEEK_SET);
  dup_fd[1] = must(dup(dup_fd[0]), "dup");
  log_fd = create("append.log", O_APPEND);
  must(mkdir(at("directory"), 0750) < 0 && errno != EEXIST ? -1 : 0, "mkdir");
  dir_fd = must(open(at("directory"), O_RDONLY | O_DIRECTORY | O_CLOEXEC), "directory");
  // A run that was killed between two steps has left its file.
  must(unlinkat(dir_fd, "new", 0) < 0 && errno != ENOENT ? -1 : 0, "new");
  inotify_fd = must(inotify_init1(IN_NONBLOCK | IN_CLOEXEC), "inotify_init1");
  must(mkdir(options.watch, 0700) < 0 && errno != EEXIST ? -1 : 0, options.watch);
  must(inotify_add_watch(inotify_fd, options.watch, IN_CREATE | IN_DELETE), options.watch);
  flock_fd = create("flock", 0), fcntl_fd = create("fcntl", 0);
  must(flock(flock_fd, LOCK_EX | LOCK_NB), "flock");
  must(fcntl(fcntl_fd, F_SETLK, &whole), "F_SETLK");
  whole.l_start = 100;
  must(fcntl(fcntl_fd, F_OFD_SETLK, &whole), "F_OFD_SETLK");
}

static void step_deleted(void) {
  struct stat st;
  struct record r, expected;
  if (deleted_count == RECORDS) {
    CHECK(C_DELETED, ftruncate(deleted_fd, PAGE) == 0, "ftruncate: %s", strerror(errno));
    deleted_count = KEPT, deleted_epoch++;
  }
  append_deleted();
  CHECK(C_DELETED, fstat(deleted_fd, &st) == 0 && st.st_nlink == 0, "the file has %lu names", (long)st.st_nlink);
  CHECK(C_DELETED, st.st_size == (off_t)deleted_count * RECORD, "size %ld", (long)st.st_size);
  u64 n = mix(4, shared->counter[C_DELETED]) % deleted_count;
  expected = file_record(C_DELETED, n < KEPT ? n : n ^ deleted_epoch << 32);
  CHECK(C_DELETED, pread(deleted_fd, &r, RECORD, n * RECORD) == RECORD && memcmp(&r, &expected, RECORD) == 0, "record %lu of %lu", n, deleted_count);
  expected = file_record(C_DELETED, n % KEPT);
  CHECK(C_DELETED, memcmp(&deleted_map[n % KEPT], &expected, RECORD) == 0, "record %lu through its mapping", n % KEPT);
  advance(C_DELETED);
}

// Written through the mapping and read back through the descriptor, and the
// other way round; an old record at random must have its latest content.
static void step_mapped(void) {
  static u64 n;
  struct record r, old;
  u64 slot = n % RECORDS, back = n ? mix(5, n) % (n < RECORDS ? n : RECORDS) : 0;
  struct record fresh = file_record(C_MMAP_SHARED, n);
  if (n % 2) mapped[slot] = fresh;
  else CHECK(C_MMAP_SHARED, pwrite(mapped_fd, &fresh, RECORD, slot * RECORD) == RECORD, "pwrite: %s", strerror(errno));
  CHECK(C_MMAP_SHARED, pread(mapped_fd, &r, RECORD, slot * RECORD) == RECORD && memcmp(&r, &fresh, RECORD) == 0, "record %lu through the descriptor", n);
  CHECK(C_MMAP_SHARED, memcmp(&mapped[slot], &fresh, RECORD) == 0, "record %lu through the mapping", n);
  old = file_record(C_MMAP_SHARED, n - back);
  CHECK(C_MMAP_SHARED, memcmp(&mapped[(n - back) % RECORDS], &old, RECORD) == 0, "old record %lu", n - back);
  n++;
  advance(C_MMAP_SHARED);
}

static void step_private(void) {
  static u64 n;
  struct record r, expected;
  for (int i = 0; i < 16; i++, n++) {
    u64 slot = n % RECORDS, own = slot / KEPT % 2;
    expected = file_record(C_MMAP_PRIVATE, slot + (own ? RECORDS : 0));
    CHECK(C_MMAP_PRIVATE, memcmp(&private_map[slot], &expected, RECORD) == 0, "%s record %lu", own ? "own" : "file's", slot);
  }
  expected = file_record(C_MMAP_PRIVATE, n % RECORDS);
  CHECK(C_MMAP_PRIVATE, pread(private_fd, &r, RECORD, n % RECORDS * RECORD) == RECORD && memcmp(&r, &expected, RECORD) == 0, "record %lu of the file", n % RECORDS);
  advance(C_MMAP_PRIVATE);
}

static void step_append(void) {
  struct stat st;
  struct record r, fresh = file_record(C_APPEND, log_size / RECORD);
  CHECK(C_APPEND, lseek(log_fd, 0, SEEK_SET) == 0 && write(log_fd, &fresh, RECORD) == RECORD, "write: %s", strerror(errno));
  log_size += RECORD;
  CHECK(C_APPEND, fcntl(log_fd, F_GETFL) & O_APPEND, "O_APPEND is gone");
  CHECK(C_APPEND, fstat(log_fd, &st) == 0 && st.st_size == (off_t)log_size, "size %ld, not %lu", (long)st.st_size, log_size);
  u64 n = mix(6, shared->counter[C_APPEND]) % (log_size / RECORD);
  fresh = file_record(C_APPEND, n);
  CHECK(C_APPEND, pread(log_fd, &r, RECORD, n * RECORD) == RECORD && memcmp(&r, &fresh, RECORD) == 0, "record %lu", n);
  if (log_size == MAPPED) {
    CHECK(C_APPEND, ftruncate(log_fd, 0) == 0, "ftruncate: %s", strerror(errno));
    log_size = 0;
  }
  advance(C_APPEND);
}

static void step_dup(void) {
  static u64 n;
  struct record r, expected = file_record(C_MMAP_PRIVATE, n % RECORDS);
  CHECK(C_DUP, read(dup_fd[n % 2], &r, RECORD) == RECORD && memcmp(&r, &expected, RECORD) == 0, "record %lu", n);
  n++;
  CHECK(C_DUP, lseek(dup_fd[n % 2], 0, SEEK_CUR) == (off_t)((n - 1) % RECORDS + 1) * RECORD, "the other descriptor is at %ld", (long)lseek(dup_fd[n % 2], 0, SEEK_CUR));
  if (n % RECORDS == 0) lseek(dup_fd[0], 0, SEEK_SET);
  advance(C_DUP);
}

static void step_directory(void) {
  struct stat st;
  int fd = openat(dir_fd, "new", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  CHECK(C_DIRFD, fd >= 0, "openat: %s", strerror(errno));
  close(fd);
  CHECK(C_DIRFD, renameat(dir_fd, "new", dir_fd, "renamed") == 0, "renameat: %s", strerror(errno));
  CHECK(C_DIRFD, stat(at("directory/renamed"), &st) == 0, "the directory is not the one in the tree");
  CHECK(C_DIRFD, unlinkat(dir_fd, "renamed", 0) == 0, "unlinkat: %s", strerror(errno));
  advance(C_DIRFD);
}

// CRIU carries the watch but not events already queued, and says so; a round
// that was frozen between act and event is therefore repeated, twice at most.
static void step_inotify(void) {
  static u64 missed;
  char path[300], name[32], buffer[4096];
  int seen = 0;
  snprintf(name, sizeof name, "probe-%lu", value(&shared->counter[C_INOTIFY]) % 100);
  snprintf(path, sizeof path, "%s/%s", options.watch, name);
  int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  CHECK(C_INOTIFY, fd >= 0 && close(fd) == 0 && unlink(path) == 0, "%s: %s", path, strerror(errno));
  ssize_t n = read(inotify_fd, buffer, sizeof buffer);
  for (ssize_t i = 0; i < n;) {
    struct inotify_event *event = (struct inotify_event *)(buffer + i);
    if (event->len && strcmp(event->name, name) == 0) seen |= event->mask & (IN_CREATE | IN_DELETE);
    i += sizeof *event + event->len;
  }
  missed = seen == (IN_CREATE | IN_DELETE) ? 0 : missed + 1;
  CHECK(C_INOTIFY, missed < 3, "no event for %s (read %ld: %s)", path, (long)n, strerror(errno));
  if (missed == 0) advance(C_INOTIFY);
}

// -------------------------------------------------- the child with its own user

static int foreign_flock_fd, foreign_fcntl_fd;

static void begin_user(void) {
  foreign_flock_fd = must(open(at("flock"), O_RDWR | O_CLOEXEC), "flock");
  foreign_fcntl_fd = must(open(at("fcntl"), O_RDWR | O_CLOEXEC), "fcntl");
  open_clients();
  unsigned id = options.uid;
  if (id == 0) return;
  if (setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0) fatal("--uid %u", id);
}

static void step_locks(void) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 15, .l_len = 1};
  int result = flock(foreign_flock_fd, LOCK_EX | LOCK_NB);
  if (result < 0 && errno == EINTR) return;
  CHECK(C_LOCKS, result < 0 && errno == EWOULDBLOCK, "flock is not held (%s)", result < 0 ? strerror(errno) : "taken");
  CHECK(C_LOCKS, fcntl(foreign_fcntl_fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK, "the fcntl lock is not held");
  CHECK(C_LOCKS, lock.l_pid == shared->pid[FILES] && lock.l_start == 10 && lock.l_len == 20, "the fcntl lock is of %d, %ld+%ld", lock.l_pid, (long)lock.l_start, (long)lock.l_len);
  lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 105, .l_len = 1};
  CHECK(C_LOCKS, fcntl(foreign_fcntl_fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_start == 100, "the OFD lock is not held");
  advance(C_LOCKS);
}

// A child stays a zombie for a few steps before it is reaped; every second one
// leaves a child of its own behind for the parent of all to reap.
static void step_zombie(void) {
  static u64 n, age;
  static pid_t child;
  siginfo_t info = {0};
  int status;
  if (child == 0) {
    if (n % 2) atomic_fetch_add(&shared->orphans_made, 1);
    child = fork();
    if (child < 0) return violation(C_ZOMBIE, "fork: %s", strerror(errno));
    if (child == 0) {
      if (n % 2) fork();  // Both end at once; the elder leaves the younger behind.
      _exit(1 + n % 100);
    }
    age = 0;
    return;
  }
  if (++age < 4) return;
  if (waitid(P_PID, child, &info, WEXITED | WNOWAIT | WNOHANG) == 0 && info.si_pid == 0) return;
  CHECK(C_ZOMBIE, info.si_pid == child && info.si_status == (int)(1 + n % 100), "waitid: pid %d, status %d", info.si_pid, info.si_status);
  CHECK(C_ZOMBIE, waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 1 + n % 100, "status %x", status);
  child = 0, n++;
  advance(C_ZOMBIE);
}

// ------------------------------------------------------- processes and threads

typedef void (*step_t)(void);
static const struct thread_plan {
  enum role role;
  step_t steps[6];
} thread_plans[] = {
    {MAIN, {step_memory, step_identity, step_clock, step_fpu}},
    {MAIN, {send_pipe, send_usr1}},
    {MAIN, {serve_unix}},
    {MAIN, {serve_tcp}},
    {PIPES, {step_memory, step_identity, step_clock}},
    {PIPES, {receive_pipe, receive_socketpair}},
    {PIPES, {receive_fifo, receive_datagram}},
    {FILES, {step_memory, step_identity, step_clock}},
    {FILES, {step_deleted, step_append, step_dup, step_directory}},
    {FILES, {step_mapped, step_private, step_inotify}},
    {FILES, {send_socketpair, send_fifo}},
    {TIMERS, {step_memory, step_identity, step_clock, step_intervals}},
    {TIMERS, {step_epoll}},
    {TIMERS, {step_nanosleep}},
    {TIMERS, {step_pending}},
    {TIMERS, {step_futex_even}},
    {TIMERS, {step_futex_odd}},
    {SHARED, {step_memory, step_identity, step_clock}},
    {SHARED, {step_exchange}},
    {SHARED, {step_semaphores}},
    {GRANDCHILD, {step_memory, step_identity, step_clock}},
    {GRANDCHILD, {step_exchange}},
    {GRANDCHILD, {step_semaphores}},
    {USER, {step_memory, step_identity, step_clock}},
    {USER, {use_clients, send_datagram}},
    {USER, {visit_unix}},
    {USER, {step_locks, step_zombie}},
};
enum { THREADS = sizeof thread_plans / sizeof *thread_plans };

static atomic_int started;

static void *run_thread(void *argument) {
  const struct thread_plan *plan = argument;
  static _Thread_local u64 mark;
  pid_t thread = gettid();
  mark = mix(thread, (u64)(uintptr_t)&thread);
  // Until the main thread has its own signal mask back, it is not itself.
  while (!atomic_load(&started)) pause_ms(1);
  while (!atomic_load(&shared->stop)) {
    for (int i = 0; i < 6 && plan->steps[i]; i++) plan->steps[i]();
    CHECK(C_IDENTITY + role, gettid() == thread, "thread %d became %d", thread, gettid());
    CHECK(C_IDENTITY + role, mark == mix(thread, (u64)(uintptr_t)&thread), "thread-local storage of thread %d", thread);
    pause_ms(5);
  }
  return NULL;
}

// Threads inherit an all-blocked mask, so signals only ever meet main threads.
static void start_threads(void) {
  pthread_attr_t small;
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 262144);
  pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 0; i < THREADS; i++)
    if (thread_plans[i].role == role && (errno = pthread_create(&thread, &small, run_thread, (void *)&thread_plans[i])))
      fatal("pthread_create");
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  atomic_store(&started, 1);
}

static void settle(void) {
  char name[32];
  struct rlimit limit;
  prctl(PR_SET_PDEATHSIG, role == MAIN ? 0 : SIGKILL);
  snprintf(name, sizeof name, "ks-%s", role_names[role]);
  prctl(PR_SET_NAME, name);
  umask(020 + role);
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = 256 + role;
  setrlimit(RLIMIT_NOFILE, &limit);
  open_memory();
  atomic_store(&shared->pid[role], getpid());
}

static void spawn(enum role child);

static void run_child(void) {
  char directory[64];
  sigset_t quiet;
  sigemptyset(&quiet);
  for (int s = SIGRTMIN + 2; s <= SIGRTMAX; s++) sigaddset(&quiet, s);
  sigaddset(&quiet, SIGINT);
  sigprocmask(SIG_SETMASK, &quiet, NULL);
  signal(SIGTERM, SIG_DFL);
  if (role == SHARED) setsid();
  if (role == TIMERS) setpgid(0, 0);
  snprintf(directory, sizeof directory, "cwd-%s", role_names[role]);
  must(mkdir(at(directory), 0755) < 0 && errno != EEXIST ? -1 : 0, directory);
  must(chdir(at(directory)), directory);
  if (role == FILES) begin_files();
  if (role == TIMERS) begin_timers();
  if (role == SHARED) spawn(GRANDCHILD);
  if (role == USER) begin_user();
  settle();
  atomic_fetch_add(&shared->ready, 1);
  while (atomic_load(&shared->ready) < ROLES) pause_ms(1);
  start_threads();
  // The parent-death signal belongs to the thread that asked for it: this one.
  for (int death_signal = 0;; pause_ms(50)) {
    prctl(PR_GET_PDEATHSIG, &death_signal);
    CHECK(C_IDENTITY + role, death_signal == SIGKILL, "the parent-death signal is %d", death_signal);
  }
}

static void spawn(enum role child) {
  pid_t pid = must(fork(), "fork");
  if (pid) return;
  role = child;
  run_child();
}

// ----------------------------------------------------------------- the parent

static volatile sig_atomic_t asked_to_stop;
static void on_stop(int number) { asked_to_stop = number; }

static int is_active(int c) {
  if (options.no_sysv && (c == C_SHM_SYSV || c == C_SEM_SYSV)) return 0;
  return c != C_TCP || options.tcp;
}

static void write_status(void) {
  static char text[8192];
  char name[48];
  int n = snprintf(text, sizeof text,
                   "{\"generation\":%lu,\"boot_id\":\"%s\",\"started_at\":\"%s\",\"pid\":%d,\"port\":%u,\"bind\":\"%s\",\"ticks\":%lu,\"violations\":%lu,\"components\":{",
                   generation, boot_id, started_at, getpid(), options.port, options.bind, value(&shared->ticks), value(&shared->violations));
  for (int c = 0, first = 1; c < C_TOTAL; c++) {
    if (!is_active(c)) continue;
    n += snprintf(text + n, sizeof text - n, "%s\"%s\":%lu", first ? "" : ",", component_name(c, name, sizeof name), value(&shared->counter[c]));
    first = 0;
  }
  n += snprintf(text + n, sizeof text - n, "}}\n");
  int fd = open(at("status.new"), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  if (fd < 0 || write(fd, text, n) != n) violation(C_IDENTITY, "status: %s", strerror(errno));
  close(fd);
  char from[512];
  snprintf(from, sizeof from, "%s", at("status.new"));
  CHECK(C_IDENTITY, rename(from, at("status")) == 0, "rename: %s", strerror(errno));
}

// Orphans of the whole tree end here, as they would at any init.
static void reap(void) {
  int status;
  pid_t pid;
  for (int limit = 64; limit > 0 && (pid = waitpid(-1, &status, WNOHANG)) > 0; limit--) {
    int known = -1;
    for (int r = 0; r < ROLES; r++)
      if (shared->pid[r] == pid) known = r;
    CHECK(C_IDENTITY, known < 0, "process %s ended with %x", known < 0 ? "" : role_names[known], status);
    if (known < 0) advance(C_ORPHAN);
  }
  CHECK(C_ORPHAN, value(&shared->counter[C_ORPHAN]) <= value(&shared->orphans_made), "more orphans than were made");
}

static void find_stalled(void) {
  static u64 last[C_TOTAL];
  static int still[C_TOTAL];
  char name[48];
  for (int c = 0; c < C_TOTAL; c++) {
    u64 current = value(&shared->counter[c]);
    still[c] = current == last[c] && is_active(c) ? still[c] + 1 : 0;
    last[c] = current;
    CHECK(c, still[c] < 100, "%s stood still for 100 ticks", component_name(c, name, sizeof name));
  }
}

static int finish(int result) {
  atomic_store(&shared->stop, 1);
  for (int r = 1; r < ROLES; r++)
    if (shared->pid[r] > 0) kill(shared->pid[r], SIGTERM);
  for (int i = 0; i < 100; i++) {
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD) break;
    if (i == 50)
      for (int r = 1; r < ROLES; r++)
        if (shared->pid[r] > 0) kill(shared->pid[r], SIGKILL);
    pause_ms(5);
  }
  write_status();
  remove_ipc();
  rmdir(options.watch);
  return value(&shared->violations) ? 1 : result;
}

static void prepare(void) {
  unsigned char random[16];
  char text[32];
  if (getrandom(random, sizeof random, 0) != sizeof random) fatal("getrandom");
  for (int i = 0; i < 16; i++) sprintf(boot_id + 2 * i, "%02x", random[i]);
  started_realtime = time(NULL);
  strftime(started_at, sizeof started_at, "%Y-%m-%dT%H:%M:%SZ", gmtime(&started_realtime));
  must(chdir(options.dir), options.dir);
  read_whole(at("generation"), text, sizeof text);
  generation = strtoull(text, NULL, 10) + 1;
  int fd = create("generation", 0);
  dprintf(fd, "%lu\n", generation);
  close(fd);
  violations_fd = create("violations", O_APPEND);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) fatal("mmap");
}

static int run(void) {
  umask(022);
  prepare();
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  open_ipc();
  open_streams();
  open_servers();
  spawn(PIPES), spawn(FILES), spawn(TIMERS), spawn(SHARED);
  // The last child opens what `files` locks, so that must exist by then.
  while (!shared->pid[FILES] && !shared->stop) pause_ms(1);
  spawn(USER);
  signal(SIGTERM, on_stop), signal(SIGINT, on_stop);
  settle();
  atomic_fetch_add(&shared->ready, 1);
  while (atomic_load(&shared->ready) < ROLES && !shared->stop && !asked_to_stop) pause_ms(1);
  if (shared->stop) return finish(2);
  start_threads();
  printf("kitchensink started: boot_id %s, generation %lu\n", boot_id, generation);
  while (!asked_to_stop && value(&shared->violations) == 0) {
    pause_ms(100);
    u64 tick = atomic_fetch_add(&shared->ticks, 1) + 1;
    reap();
    find_stalled();
    write_status();
    if (tick % 10 == 0) printf("tick %lu of %s\n", tick, boot_id);
  }
  printf("kitchensink ends: %s\n", value(&shared->violations) ? "violated" : "asked to");
  return finish(0);
}

// --------------------------------------------------------------------- verify

static u64 number_after(const char *text, const char *key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  const char *found = strstr(text, quoted);
  return found ? strtoull(found + strlen(quoted), NULL, 10) : 0;
}

// The listener must greet a stranger with the name the status has.
static int listener_answers(const char *status) {
  char address[64] = "";
  const char *found = strstr(status, "\"bind\":\""), *own = strstr(status, "\"boot_id\":\"");
  if (!found || !own || sscanf(found + 8, "%63[0-9.]", address) != 1 || sscanf(own + 11, "%32s", boot_id) != 1) return 0;
  int fd = connect_tcp(strcmp(address, "0.0.0.0") ? address : "127.0.0.1", number_after(status, "port"));
  int ok = fd >= 0 && is_greeted(fd);
  if (fd >= 0) close(fd);
  return ok;
}

static int verify(void) {
  static char before[8192], after[8192], stalled[4096];
  char name[48];
  size_t n = 0;
  if (!read_whole(at("status"), before, sizeof before)) fatal("%s", at("status"));
  pause_ms(options.interval_ms);
  size_t length = read_whole(at("status"), after, sizeof after);
  if (length && after[length - 1] == '\n') after[length - 1] = 0;
  for (int c = 0; c < C_TOTAL; c++) {
    const char *key = component_name(c, name, sizeof name);
    if (c == C_TCP && !strstr(after, "\"tcp_stream\"")) continue;
    if ((c == C_SHM_SYSV || c == C_SEM_SYSV) && !strstr(after, "_sysv\"")) continue;
    if (number_after(after, key) <= number_after(before, key))
      n += snprintf(stalled + n, sizeof stalled - n, "%s\"%s\"", n ? "," : "", key);
  }
  int listener = listener_answers(after), same = length > 0 && number_after(after, "generation") == number_after(before, "generation");
  int ok = n == 0 && same && listener && number_after(after, "violations") == 0;
  printf("{\"ok\":%s,\"listener\":%s,\"stalled\":[%s],\"status\":%s}\n", ok ? "true" : "false", listener ? "true" : "false", stalled, length ? after : "null");
  return ok ? 0 : 1;
}

static unsigned number(const char *text, unsigned low, unsigned high) {
  char *end = NULL;
  unsigned long n = text ? strtoul(text, &end, 10) : 0;
  if (!text || *end || n < low || n > high) {
    fprintf(stderr, "kitchensink: a number from %u to %u is needed, not '%s'\n", low, high, text ? text : "");
    exit(2);
  }
  return n;
}

int main(int argc, char **argv) {
  static char status[8192];
  const char *command = "run";
  int i = 1;
  if (argc > 1 && argv[1][0] != '-') command = argv[i++];
  for (; i < argc; i++) {
    const char *option = argv[i];
    if (strcmp(option, "--tcp") == 0) options.tcp = 1;
    else if (strcmp(option, "--periodic-timerfd") == 0) options.periodic_timerfd = 1;
    else if (strcmp(option, "--no-sysv") == 0) options.no_sysv = 1;
    else if (i + 1 == argc) option = "?";
    else if (strcmp(option, "--dir") == 0) options.dir = argv[++i];
    else if (strcmp(option, "--bind") == 0) options.bind = argv[++i];
    else if (strcmp(option, "--watch") == 0) options.watch = argv[++i];
    else if (strcmp(option, "--mib") == 0) options.mib = number(argv[++i], 1, 4096);
    else if (strcmp(option, "--port") == 0) options.port = number(argv[++i], 1, 65535);
    else if (strcmp(option, "--uid") == 0) options.uid = number(argv[++i], 0, 65534);
    else if (strcmp(option, "--interval-ms") == 0) options.interval_ms = number(argv[++i], 100, 60000);
    else option = "?";
    if (*option == '?') {
      fprintf(stderr, "kitchensink: unknown option or missing value: %s\n", argv[i]);
      return 2;
    }
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (strcmp(command, "run") == 0) return run();
  if (strcmp(command, "verify") == 0) return verify();
  if (strcmp(command, "status") == 0) return read_whole(at("status"), status, sizeof status) && fputs(status, stdout) >= 0 ? 0 : 1;
  fprintf(stderr, "kitchensink: unknown command %s (run, verify, status)\n", command);
  return 2;
}
