# The engine as Python sees it: one set of commands, two ways to drive it.
from libc.stdint cimport uint64_t

from pilot._core.capi cimport pl_engine, pl_loop, pl_tx

ctypedef struct LogBuffer:
    char *data
    size_t len, cap


cdef class PeerCommands:
    # Every command runs between these two, without the GIL.
    cdef pl_engine *acquire(self, uint64_t *now_ns) noexcept nogil
    cdef void release(self) noexcept nogil
    cdef int check_open(self) except -1


cdef class EngineBase(PeerCommands):
    pass


cdef class DataPlane(EngineBase):
    cdef pl_loop *loop
    cdef bint started


cdef class Engine(EngineBase):
    cdef pl_engine *engine
    cdef pl_tx *tx
    cdef uint64_t now
    cdef LogBuffer log
