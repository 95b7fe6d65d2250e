"""Bindings on csrc/keys.h."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from pilot._core._errors import CoreError


cdef extern from "keys.h" nogil:
    enum:
        PL_OK
        PL_KEY_SIZE
        PL_SIGNATURE_SIZE
    enum pl_curve:
        PL_ED25519
        PL_X25519
    ctypedef struct pl_secret:
        pass
    pl_secret *pl_secret_new(pl_curve curve, const uint8_t *raw)
    void pl_secret_free(pl_secret *s)
    int pl_secret_raw(const pl_secret *s, uint8_t *out)
    int pl_secret_public(const pl_secret *s, uint8_t *out)
    int pl_secret_sign(const pl_secret *s, const uint8_t *message, size_t len, uint8_t *out)
    int pl_secret_agree(const pl_secret *s, const uint8_t *peer, uint8_t *out)
    int pl_verify(const uint8_t *key, const uint8_t *signature, const uint8_t *message, size_t len)


cdef class Secret:
    cdef pl_secret *secret

    cdef int _open(self, pl_curve curve, bytes raw) except -1:
        if len(raw) != PL_KEY_SIZE:
            raise ValueError("a private key is 32 bytes")
        self.secret = pl_secret_new(curve, <const uint8_t *> PyBytes_AS_STRING(raw))
        if self.secret is NULL:
            raise MemoryError
        return 0

    def __dealloc__(self):
        pl_secret_free(self.secret)

    def __reduce__(self):
        raise TypeError("a private key is not copied by accident")

    @property
    def public_key(self):
        cdef uint8_t out[32]
        cdef int r = pl_secret_public(self.secret, out)
        if r < 0:
            raise CoreError(r)
        return PyBytes_FromStringAndSize(<char *> out, PL_KEY_SIZE)

    def raw(self):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, PL_KEY_SIZE)
        cdef int r = pl_secret_raw(self.secret, <uint8_t *> PyBytes_AS_STRING(out))
        if r < 0:
            raise CoreError(r)
        return out


cdef class SigningKey(Secret):
    def __cinit__(self, bytes raw not None):
        self._open(PL_ED25519, raw)

    def sign(self, bytes message not None):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, PL_SIGNATURE_SIZE)
        cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(message)
        cdef uint8_t *to = <uint8_t *> PyBytes_AS_STRING(out)
        cdef size_t n = len(message)
        cdef int r
        with nogil:
            r = pl_secret_sign(self.secret, p, n, to)
        if r < 0:
            raise CoreError(r)
        return out


cdef class AgreementKey(Secret):
    def __cinit__(self, bytes raw not None):
        self._open(PL_X25519, raw)

    def agree(self, bytes peer not None):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, PL_KEY_SIZE)
        cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(peer)
        cdef uint8_t *to = <uint8_t *> PyBytes_AS_STRING(out)
        cdef int r
        if len(peer) != PL_KEY_SIZE:
            raise ValueError("a public key is 32 bytes")
        with nogil:
            r = pl_secret_agree(self.secret, p, to)
        if r < 0:
            raise CoreError(r)
        return out


def verify(bytes key not None, bytes signature not None, bytes message not None):
    cdef const uint8_t *k = <const uint8_t *> PyBytes_AS_STRING(key)
    cdef const uint8_t *s = <const uint8_t *> PyBytes_AS_STRING(signature)
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(message)
    cdef size_t n = len(message)
    cdef int r
    if len(key) != PL_KEY_SIZE or len(signature) != PL_SIGNATURE_SIZE:
        return False
    with nogil:
        r = pl_verify(k, s, p, n)
    return r == PL_OK
