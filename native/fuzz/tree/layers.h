/* SPDX-License-Identifier: Apache-2.0 */
/* Made-up layers, beside the JSON that says what they hold. */
#ifndef LAZYFS_FUZZ_LAYERS_H
#define LAZYFS_FUZZ_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_MADE_LAYERS 4
#define MAX_MADE_ITEMS 900 /* of a layer */

/* An entry; paths are normalised, with slashes.  The kinds are EROFS', and 8
 * for a hardlink. */
struct made_item {
	const char *path, *link;
	size_t path_size, link_size;
	uint64_t size, device_offset;
	uint32_t chunk_count, mode, uid, gid, major, minor;
	uint8_t kind, time, xattrs; /* a bit for each of MADE_XATTR */
	bool is_odd; /* a path or link that the core leaves to its twin */
};

struct made_layer {
	struct made_item items[MAX_MADE_ITEMS];
	size_t count;
	uint64_t device_size, chunk_count;
	char *json;
	size_t json_size;
};

struct made_layers {
	struct made_layer layers[MAX_MADE_LAYERS];
	size_t count;
};

#endif /* LAZYFS_FUZZ_LAYERS_H */
