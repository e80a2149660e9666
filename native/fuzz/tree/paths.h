/* SPDX-License-Identifier: Apache-2.0 */
/* Paths of entries, oddly written, and what they mean. */
#ifndef LAZYFS_FUZZ_PATHS_H
#define LAZYFS_FUZZ_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#include "maker.h"

/* Add to a text of MAX_PATH_TEXT bytes; what is too long is left out. */
void add(char *text, size_t *size, const char *more);
void add_name(struct maker *in, char *text, size_t *size);

/* Make the text of a path: new, or below an earlier one; returns its size. */
size_t make_path(struct maker *in, char *text);

/* Keep the normalised form of a path; false: the core does not take it. */
bool keep_path(struct maker *in, const char *text, size_t size,
	       const char **path, size_t *path_size);

#endif /* LAZYFS_FUZZ_PATHS_H */
