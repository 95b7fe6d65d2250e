/* The variants behind pl_crc32 (wire.h), for its tests and benchmarks: all give the same values. */
#ifndef PL_CRC32_H
#define PL_CRC32_H

#include "pl.h"

typedef uint32_t (*pl_crc32_fn)(uint32_t crc, const uint8_t *p, size_t len);

enum { PL_CRC32_TABLE = 0, PL_CRC32_CLMUL128, PL_CRC32_CLMUL256, PL_CRC32_VARIANTS };

/* NULL where this processor or this build lacks it. PL_CRC32_TABLE is always there. */
pl_crc32_fn pl_crc32_variant(unsigned variant);

#endif
