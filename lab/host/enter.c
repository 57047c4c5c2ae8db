/*
 * enter: runs a program inside a test host, so faithfully that the caller cannot tell the difference.
 *
 * nsenter(1) was not enough. It leaves the program in the caller's cgroup (CRIU and Podman then see a path that begins
 * with "/.."), and a signal sent to it ends nsenter and not the program. This one joins the host's cgroup first, then
 * all of its namespaces in one step, starts the program, passes signals on, and ends the way the program ended.
 *
 *   enter [--detach] [--cgroup DIR] [--cwd DIR] [--env NAME=VALUE]... PID PROGRAM [ARGUMENT]...
 *
 * PID is the host's first process as the caller sees it. --detach starts the program in a session of its own, as a
 * child of the host's first process, and returns at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EXIT_ENTER = 125, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127, ENV_MAX = 256 };

static void fail(const char *what) {
  fprintf(stderr, "enter: %s: %s\n", what, strerror(errno));
  exit(EXIT_ENTER);
}

static void join_cgroup(const char *directory) {
  char path[4096];
  snprintf(path, sizeof path, "%s/cgroup.procs", directory);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) fail(path);
  if (write(fd, "0", 1) != 1) fail(path);
  close(fd);
}

static void join_namespaces(pid_t pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0) fail("the host's first process");
  int all = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP;
  if (setns(fd, all) != 0) fail("joining the host's namespaces");
  close(fd);
}

static void execute(char **argv, char **env, int env_count, const char *cwd) {
  signal(SIGPIPE, SIG_DFL); /* Node ignores it, and an ignored signal stays ignored in the program. */
  if (chdir(cwd) != 0) fail(cwd);
  clearenv();
  for (int i = 0; i < env_count; i++) putenv(env[i]);
  execvp(argv[0], argv);
  int not_found = errno == ENOENT;
  fprintf(stderr, "enter: %s: %s\n", argv[0], strerror(errno));
  _exit(not_found ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

/* The program's father must be a process of the host, or it would be orphaned to the machine's first process. */
static int start_detached(char **argv, char **env, int env_count, const char *cwd) {
  pid_t between = fork();
  if (between < 0) fail("fork");
  if (between == 0) {
    setsid();
    pid_t program = fork();
    if (program < 0) fail("fork");
    if (program == 0) execute(argv, env, env_count, cwd);
    _exit(0);
  }
  int status = 0;
  if (waitpid(between, &status, 0) != between) fail("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_ENTER;
}

static int end_like(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  int number = WTERMSIG(status);
  prctl(PR_SET_DUMPABLE, 0);
  signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  kill(getpid(), number);
  return 128 + number;
}

/* The kernel's own signals (a key pressed at the terminal) reach the program directly; only sent ones are passed on. */
static int passes_on(const siginfo_t *info) { return info->si_code <= 0; }

static int supervise(pid_t program, const sigset_t *all) {
  for (;;) {
    siginfo_t info;
    int number = sigwaitinfo(all, &info);
    if (number < 0) continue;
    if (number != SIGCHLD) {
      if (passes_on(&info)) kill(program, number);
      continue;
    }
    int status = 0;
    if (waitpid(program, &status, WNOHANG | WUNTRACED) != program) continue;
    if (WIFSTOPPED(status)) {
      raise(SIGSTOP);
      kill(program, SIGCONT);
      continue;
    }
    return end_like(status);
  }
}

int main(int argc, char **argv) {
  char *env[ENV_MAX];
  int env_count = 0, detach = 0, at = 1;
  const char *cgroup = NULL, *cwd = "/";
  for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
    if (strcmp(argv[at], "--detach") == 0) detach = 1;
    else if (at + 1 >= argc) break;
    else if (strcmp(argv[at], "--cgroup") == 0) cgroup = argv[++at];
    else if (strcmp(argv[at], "--cwd") == 0) cwd = argv[++at];
    else if (strcmp(argv[at], "--env") == 0 && env_count < ENV_MAX) env[env_count++] = argv[++at];
    else break;
  }
  if (argc - at < 2) {
    fprintf(stderr, "usage: enter [--detach] [--cgroup DIR] [--cwd DIR] [--env NAME=VALUE]... PID PROGRAM [ARGUMENT]...\n");
    return EXIT_ENTER;
  }
  pid_t pid = (pid_t)atoi(argv[at]);
  if (cgroup != NULL) join_cgroup(cgroup);
  /* Whoever called may have made a pipe non-blocking (Node does), and few programs expect that of their standard input. */
  for (int fd = 0; fd <= 2; fd++) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK)) fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  }
  join_namespaces(pid);
  if (detach) return start_detached(argv + at + 1, env, env_count, cwd);

  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  pid_t program = fork();
  if (program < 0) fail("fork");
  if (program == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execute(argv + at + 1, env, env_count, cwd);
  }
  return supervise(program, &all);
}
