/* SPDX-License-Identifier: Apache-2.0 */
/* What the texts of an entry mean; false: it is unusual. */
#ifndef LAZYFS_TOC_VALUES_H
#define LAZYFS_TOC_VALUES_H

#include <stdbool.h>
#include <stdint.h>

#include "lazyfs_toc.h"
#include "toc.h"
#include "toc_json.h"

/* The last time that was read: neighbours often have the same one. */
struct toc_time {
	struct text text;
	int64_t seconds; /* since 1970 */
	uint32_t nanoseconds;
};

bool toc_read_digest(struct text text, uint8_t digest[DIGEST_SIZE]);

/* toc_read_time() reads YYYY-MM-DDTHH:MM:SS[.fraction]Z. */
bool toc_read_time(struct text text, struct toc_time *time);

/* toc_read_path() writes the normalised form of a path, with NULs for slashes,
 * to the arena. */
bool toc_read_path(struct json *in, const struct lfs_toc_limits *limits,
		   struct text text, const uint8_t **path, uint32_t *path_size);

/* toc_kind() returns an enum kind, or 0. */
uint8_t toc_kind(struct text type);

#endif /* LAZYFS_TOC_VALUES_H */
