/* Congestion control strategies by name. */
#include "cc.h"

const pl_cc_ops *pl_cc_find(const char *name) {
  static const pl_cc_ops *const all[] = {&pl_cc_cubic, &pl_cc_bbr};
  for (size_t i = 0; name && i < sizeof all / sizeof *all; i++)
    if (!strcmp(all[i]->name, name)) return all[i];
  return NULL;
}
