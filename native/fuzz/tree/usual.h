/* SPDX-License-Identifier: Apache-2.0 */
/* Which layers the core takes, by rules that need no other code. */
#ifndef LAZYFS_FUZZ_USUAL_H
#define LAZYFS_FUZZ_USUAL_H

#include <stdbool.h>
#include <stddef.h>

#include "layers.h"

bool made_begins(const char *name, const char *prefix);
const char *made_name(const char *path); /* the last one of a path */
bool made_is_below(const char *path, size_t size, const char *above,
		   size_t above_size);

/* made_target() returns what a hardlink means in the end; NULL: nothing, or not
 * soon enough. */
const struct made_item *made_target(const struct made_layer *layer,
				    const struct made_item *item);

/* made_is_usual() says whether the core takes a layer, or leaves it to Python. */
bool made_is_usual(const struct made_layer *layer);

/* made_is_usual_item() says it of one entry; others may still be unusual. */
bool made_is_usual_item(const struct made_layer *layer, size_t number);

#endif /* LAZYFS_FUZZ_USUAL_H */
