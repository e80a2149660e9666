/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes that decide about a layer, and its JSON. */
#ifndef LAZYFS_FUZZ_MAKER_H
#define LAZYFS_FUZZ_MAKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layers.h"

#define ROOM (8u << 20)
#define JSON_ROOM (2u << 20)
#define MAX_PATH_TEXT 6000

struct maker {
	const uint8_t *data;
	size_t size;
	char *room;
	size_t used;
	struct made_layer *layer;
	bool is_full;
	bool is_careful; /* leaves out what is not usual */
};

/* The next byte of the input; zeros behind its end. */
static inline uint8_t next(struct maker *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

/* Keep a text as long as the layers, with a NUL behind it. */
char *keep(struct maker *in, const char *text, size_t size);

/* Put JSON as of printf(). */
__attribute__((format(printf, 2, 3))) void put(struct maker *in,
					       const char *format, ...);
void put_byte(struct maker *in, uint8_t byte);
/* Put a text; 'style' says which of its characters are escaped. */
void put_text(struct maker *in, const char *text, size_t size, unsigned style);

#endif /* LAZYFS_FUZZ_MAKER_H */
