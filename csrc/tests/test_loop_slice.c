/* What a conversation asks of the scheduler: a short slice, the same share, and all as it was afterwards. */
#include "check.h"
#include "loop_internal.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
} attributes;

static attributes own(void) {
  attributes a = {0};
  CHECK(syscall(SYS_sched_getattr, 0, &a, (unsigned)sizeof a, 0) == 0);
  return a;
}

static void *slices(void *arg) {
  (void)arg;
  CHECK(setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 3) == 0);
  attributes before = own();
  pl_spin_slice(true);
  attributes in = own();
  CHECK(in.policy == before.policy && in.nice == 3);
  if (before.runtime) CHECK(in.runtime == 100 * PL_NS_PER_US); /* the system knows slices */
  pl_spin_slice(false);
  attributes after = own();
  CHECK(after.policy == before.policy && after.nice == 3 && after.runtime == before.runtime);
  return NULL;
}

int main(void) {
  pthread_t t;
  CHECK(pthread_create(&t, NULL, slices, NULL) == 0 && pthread_join(t, NULL) == 0);
  printf("test_loop_slice: ok\n");
  return 0;
}
