# Conversion between ("192.0.2.1", 4000) and pl_addr.
from pilot._core.capi cimport pl_addr

cdef int addr_from_py(object addr, pl_addr *out) except -1
cdef object addr_to_py(const pl_addr *a)
