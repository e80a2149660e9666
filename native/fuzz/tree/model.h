/* SPDX-License-Identifier: Apache-2.0 */
/* Layers merged as a tree of plain paths, by rules that need no other code. */
#ifndef LAZYFS_FUZZ_MODEL_H
#define LAZYFS_FUZZ_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layers.h"

#define IMPLIED UINT32_MAX
#define MAX_NODES (MAX_MADE_LAYERS * (MAX_MADE_ITEMS + 6000))

/* A name of the merged tree; 'item' is what a hardlink means in the end. */
struct node {
	const char *path;
	size_t path_size;
	uint32_t layer, item; /* of what it says */
	uint32_t first_layer, first_item; /* which inode it is */
	bool is_directory;
};

struct model {
	const struct made_layers *made;
	struct node nodes[MAX_NODES];
	size_t count;
};

/* model_merge() fills in the nodes. */
void model_merge(struct model *model, const struct made_layers *made);

#endif /* LAZYFS_FUZZ_MODEL_H */
