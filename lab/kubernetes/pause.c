/*
 * pause: the process that holds a pod's namespaces. It sleeps until it is told to end, and reaps what its pod's processes
 * leave behind where they share one process namespace.
 */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
  (void)number;
  _exit(0);
}

static void reap(int number) {
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction ending = {.sa_handler = end};
  struct sigaction reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART};
  if (sigaction(SIGTERM, &ending, NULL) != 0 || sigaction(SIGINT, &ending, NULL) != 0) return 1;
  if (sigaction(SIGCHLD, &reaping, NULL) != 0) return 1;
  for (;;) pause();
}
