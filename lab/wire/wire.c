/*
 * wire: a switch in user space that delays and loses frames.
 *
 *   wire DELAY_US LOSS_PPM [+]PORT...
 *
 * The kernel's own delay (netem) is not built into every kernel, the reference machine's among them. Reading and writing
 * frames needs nothing but packet sockets, which every kernel has. A TUN device would serve as well, at the price of a
 * device more for each port and of one more copy.
 *
 * Each PORT is an interface of this network namespace. A frame goes to the port behind which its destination was last
 * seen, or to all others. It is lost with the given probability, then waits for the given time. Ports marked with "+" lie
 * nearby: frames from and to them are neither delayed nor lost.
 *
 * All delays are equal, so one queue in order of arrival is enough. It is bounded: beyond QUEUE_BYTES_MAX frames are
 * dropped, as in any device. Frames come and go with the kernel's offload header, because a checksum that the sender left
 * to its hardware is not in the frame. The lab turns segmentation offload off for the senders, so that a frame lost here
 * is a frame, and not a burst of forty.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

enum {
  PORTS_MAX = 64,
  STATIONS_MAX = 1024,
  FRAME_MAX = 65536 + 256,
  BATCH_MAX = 64,
  SOCKET_BUFFER_BYTES = 32 << 20,
};
#define QUEUE_BYTES_MAX ((size_t)256 << 20)

struct port {
  int fd;
  int nearby;
};
struct station {
  uint8_t mac[6];
  int port;
};
struct frame {
  struct frame *next;
  int64_t due_ns;
  int port;
  size_t length;
  uint8_t bytes[];
};

static struct port ports[PORTS_MAX];
static struct pollfd polls[PORTS_MAX];
static int port_count;
static struct station stations[STATIONS_MAX];
static int station_count;
static struct frame *first, **last = &first;
static size_t queued_bytes;
static int64_t delay_ns;
static uint64_t loss_ppm;
static uint64_t random_state;

static void fail(const char *what) {
  fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static void open_port(const char *name) {
  if (port_count == PORTS_MAX) fail("too many ports");
  struct port *port = &ports[port_count];
  port->nearby = name[0] == '+';
  if (port->nearby) name++;
  struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
  address.sll_ifindex = (int)if_nametoindex(name);
  if (address.sll_ifindex == 0) fail(name);
  /* Protocol 0 until bound: no frame of another interface may slip in. */
  port->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (port->fd < 0) fail("socket");
  int on = 1, size = SOCKET_BUFFER_BYTES;
  if (setsockopt(port->fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) != 0) fail("PACKET_VNET_HDR");
  if (setsockopt(port->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) != 0) fail("PACKET_IGNORE_OUTGOING");
  if (setsockopt(port->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) != 0) fail("SO_RCVBUFFORCE");
  if (setsockopt(port->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0) fail("SO_SNDBUFFORCE");
  struct packet_mreq promiscuous = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
  if (setsockopt(port->fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous) != 0) fail("promiscuous");
  if (bind(port->fd, (struct sockaddr *)&address, sizeof address) != 0) fail(name);
  polls[port_count].fd = port->fd;
  polls[port_count].events = POLLIN;
  port_count++;
}

static void learn(const uint8_t *mac, int port) {
  for (int i = 0; i < station_count; i++)
    if (memcmp(stations[i].mac, mac, 6) == 0) {
      stations[i].port = port;
      return;
    }
  /* A full table only means that frames to further stations go to all ports. */
  if (station_count == STATIONS_MAX) return;
  memcpy(stations[station_count].mac, mac, 6);
  stations[station_count++].port = port;
}

static int find(const uint8_t *mac) {
  for (int i = 0; i < station_count; i++)
    if (memcmp(stations[i].mac, mac, 6) == 0) return stations[i].port;
  return -1;
}

/* A frame that the next device has no room for is lost, which is what full devices do. */
static void deliver(int port, const uint8_t *bytes, size_t length) {
  ssize_t sent = send(ports[port].fd, bytes, length, 0);
  if (sent < 0 && errno != ENOBUFS && errno != EAGAIN && errno != ENETDOWN && errno != EINVAL && errno != EMSGSIZE &&
      errno != ENXIO)
    fail("send");
}

static void carry(int from, int to, const uint8_t *bytes, size_t length, int64_t arrived_ns) {
  int nearby = ports[from].nearby || ports[to].nearby;
  if (!nearby && loss_ppm > 0 && next_random() % 1000000 < loss_ppm) return;
  if (nearby || delay_ns == 0) {
    deliver(to, bytes, length);
    return;
  }
  if (queued_bytes + length > QUEUE_BYTES_MAX) return;
  struct frame *frame = malloc(sizeof *frame + length);
  if (frame == NULL) return;
  *frame = (struct frame){.due_ns = arrived_ns + delay_ns, .port = to, .length = length};
  memcpy(frame->bytes, bytes, length);
  *last = frame;
  last = &frame->next;
  queued_bytes += length;
}

static void forward(int from, const uint8_t *bytes, size_t length, int64_t arrived_ns) {
  const uint8_t *ethernet = bytes + sizeof(struct virtio_net_hdr);
  if (length < sizeof(struct virtio_net_hdr) + ETH_HLEN) return;
  learn(ethernet + 6, from);
  int to = (ethernet[0] & 1) ? -1 : find(ethernet);
  for (int i = 0; i < port_count; i++)
    if (i != from && (to < 0 || to == i)) carry(from, i, bytes, length, arrived_ns);
}

static void receive(int port) {
  static uint8_t bytes[FRAME_MAX];
  for (int i = 0; i < BATCH_MAX; i++) {
    ssize_t length = recv(ports[port].fd, bytes, sizeof bytes, MSG_TRUNC);
    if (length < 0 && (errno == EAGAIN || errno == ENETDOWN || errno == EINVAL)) return;
    if (length < 0) fail("recv");
    if ((size_t)length <= sizeof bytes) forward(port, bytes, (size_t)length, now_ns());
  }
}

static void send_due(void) {
  int64_t now = now_ns();
  while (first != NULL && first->due_ns <= now) {
    struct frame *frame = first;
    first = frame->next;
    if (first == NULL) last = &first;
    queued_bytes -= frame->length;
    deliver(frame->port, frame->bytes, frame->length);
    free(frame);
  }
}

int main(int argc, char **argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: wire DELAY_US LOSS_PPM [+]PORT [+]PORT...\n");
    return 2;
  }
  delay_ns = atoll(argv[1]) * 1000;
  loss_ppm = strtoull(argv[2], NULL, 10);
  random_state = (uint64_t)now_ns() | 1;
  /* Sleeping up to 50 microseconds too long is the kernel's default, and it would show in short delays. */
  prctl(PR_SET_TIMERSLACK, 1000);
  for (int i = 3; i < argc; i++) open_port(argv[i]);
  for (;;) {
    struct timespec rest, *limit = NULL;
    if (first != NULL) {
      int64_t rest_ns = first->due_ns - now_ns();
      if (rest_ns < 0) rest_ns = 0;
      rest = (struct timespec){rest_ns / 1000000000, rest_ns % 1000000000};
      limit = &rest;
    }
    if (ppoll(polls, (nfds_t)port_count, limit, NULL) < 0 && errno != EINTR) fail("ppoll");
    send_due();
    for (int i = 0; i < port_count; i++)
      if (polls[i].revents & POLLIN) receive(i);
  }
}
