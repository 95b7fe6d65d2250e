/* Waiting awake: when it is done, and when it is not. */
#include "check.h"
#include "loop_internal.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#define LIMIT_S 60

/* Two that wait awake on one processor: neither does so to the end, for each would keep the other from it. */
static void *spin_in_vain(void *arg) {
  int *fds = arg;
  pl_spin s = {0};
  pl_spin_on(&s, fds[0], pl_loop_clock_ns() + LIMIT_S * PL_NS_PER_S);
  return NULL;
}

/* Nor when each single wait is too short to tell. */
static void *spin_shortly(void *arg) {
  int *fds = arg;
  pl_spin s = {0};
  uint64_t end = pl_loop_clock_ns() + LIMIT_S * PL_NS_PER_S;
  struct pollfd p = {.fd = fds[0], .events = POLLIN};
  while (poll(&p, 1, 0) == 0 && pl_spin_on(&s, fds[0], pl_loop_clock_ns() + 10 * PL_NS_PER_US)) CHECK(pl_loop_clock_ns() < end);
  return NULL;
}

static void test_crowded(void *(*spin)(void *)) {
  cpu_set_t old, one;
  CHECK(sched_getaffinity(0, sizeof old, &old) == 0);
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
    if (CPU_ISSET(i, &old)) CPU_SET(i, &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  int fds[2];
  CHECK(pipe(fds) == 0);
  uint64_t start = pl_loop_clock_ns();
  pthread_t other;
  CHECK(pthread_create(&other, NULL, spin, fds) == 0);
  spin(fds);
  CHECK(pl_loop_clock_ns() - start < LIMIT_S * PL_NS_PER_S);
  CHECK(write(fds[1], "x", 1) == 1); /* the other is alone now */
  CHECK(pthread_join(other, NULL) == 0 && sched_setaffinity(0, sizeof old, &old) == 0);
  close(fds[0]);
  close(fds[1]);
}

/* What makes a conversation, and what ends it. */
static void test_spin(void) {
  pl_loop *l = calloc(1, sizeof *l);
  CHECK(l);
  const uint64_t limit = 200 * PL_NS_PER_US, short_wait = limit / 10;
  pl_spin s = {0};
  l->spin_ns = limit;
  for (int i = 0; i < 3; i++) {
    CHECK(pl_spin_limit(l, &s) == 0);
    l->moved += 200;
    pl_spin_note(l, &s, short_wait, true);
  }
  CHECK(pl_spin_limit(l, &s) == limit);
  pl_spin_note(l, &s, short_wait, false); /* a deadline */
  CHECK(pl_spin_limit(l, &s) == limit);
  pl_spin_note(l, &s, limit, false); /* in vain */
  CHECK(pl_spin_limit(l, &s) == 0);
  for (int i = 0; i < 9; i++) { /* a paced stream */
    l->moved += 1400;
    pl_spin_note(l, &s, short_wait, true);
    CHECK(pl_spin_limit(l, &s) == 0);
  }
  for (int i = 0; i < 9; i++) { /* a stranger's datagrams */
    l->moved += 60;
    l->junk++;
    pl_spin_note(l, &s, short_wait, true);
    CHECK(pl_spin_limit(l, &s) == 0);
  }
  for (int i = 0; i < 9; i++) pl_spin_note(l, &s, limit, true); /* answers that come late */
  CHECK(pl_spin_limit(l, &s) == 0);
  l->spin_ns = 0;
  for (int i = 0; i < 9; i++) pl_spin_note(l, &s, 0, true);
  CHECK(pl_spin_limit(l, &s) == 0);
  free(l);

  int fds[2];
  CHECK(pipe(fds) == 0);
  uint64_t start = pl_loop_clock_ns();
  pl_spin_on(&s, fds[0], start + PL_NS_PER_MS);
  CHECK(pl_loop_clock_ns() - start >= PL_NS_PER_MS);
  CHECK(write(fds[1], "x", 1) == 1);
  pl_spin_on(&s, fds[0], PL_NEVER);
  close(fds[0]);
  close(fds[1]);
}

int main(void) {
  test_spin();
  test_crowded(spin_in_vain);
  test_crowded(spin_shortly);
  printf("test_loop_spin: ok\n");
  return 0;
}
