/* Streams for threads that wait: blocking reads and writes on connections of owner APP. They take the lock themselves; call them from any
 * thread but one that holds it. One reader and one writer at a time per connection. */
#ifndef PL_LOOP_WAIT_H
#define PL_LOOP_WAIT_H

#include "loop.h"

/* Copies out what has arrived, waiting for the first byte: how many bytes (<= cap), 0 at the end of the stream, PL_EAGAIN after timeout_ns or
 * a signal, PL_ENOENT (the connection is gone: it was reset), PL_ESTATE (closed here), PL_EEXIST (another thread reads). */
int64_t pl_loop_read_wait(pl_loop *l, uint32_t conn, uint8_t *buf, size_t cap, uint64_t timeout_ns);
/* Waits until all of it is in the send buffer: how many bytes were taken, fewer than len after timeout_ns or a signal (PL_EAGAIN if none), or
 * an error as above. */
int64_t pl_loop_write_wait(pl_loop *l, uint32_t conn, const uint8_t *data, size_t len, uint64_t timeout_ns);

#endif
