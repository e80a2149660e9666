/* SPDX-License-Identifier: Apache-2.0 */
/* Layers made of a fuzzer's bytes. */
#ifndef LAZYFS_FUZZ_MAKE_LAYERS_H
#define LAZYFS_FUZZ_MAKE_LAYERS_H

#include <stddef.h>
#include <stdint.h>

#include "layers.h"

#define MADE_XATTRS 6
#define MADE_TIMES 8

struct made_xattr {
	const char *name;
	unsigned prefix; /* EROFS' number of what the name begins with */
	const char *rest;
	uint8_t byte; /* of which the value is made */
	unsigned size;
};

struct made_time {
	const char *text;
	int64_t seconds;
	uint32_t nanoseconds;
};

extern const struct made_xattr MADE_XATTR[MADE_XATTRS];
extern const struct made_time MADE_TIME[MADE_TIMES];

/* make_layers() makes at least one layer of any bytes, and always the same ones
 * of the same bytes.  They stay until it is called again. */
void make_layers(struct made_layers *made, const uint8_t *data, size_t size);

#endif /* LAZYFS_FUZZ_MAKE_LAYERS_H */
