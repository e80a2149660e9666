/* SPDX-License-Identifier: Apache-2.0 */
/* Reading JSON in place, token by token; all of it says whether it was there.
 */
#ifndef LAZYFS_TOC_JSON_H
#define LAZYFS_TOC_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
	const uint8_t *bytes;
	uint32_t size;
};

/* Where a reader is.  The arena holds what is not in the JSON as it stands, and
 * has room for as many bytes as all texts that are read. */
struct json {
	const uint8_t *at, *end;
	uint8_t *arena;
	size_t arena_used;
};

bool text_is(struct text text, const char *other);
bool text_same(struct text a, struct text b);

void json_skip_blanks(struct json *in);

/* json_take() steps over the one byte 'wanted' and the blanks before it. */
bool json_take(struct json *in, uint8_t wanted);

/* json_text() reads a text; one without escapes stays where it is. */
bool json_text(struct json *in, struct text *text);

/* json_number() reads a whole number of at most 'most' that is not negative,
 * has no needless zero, and no fraction or exponent after it. */
bool json_number(struct json *in, uint64_t most, uint64_t *number);

/* json_texts() steps over an object of texts, and returns it as it stands, with
 * no size where it is empty. */
bool json_texts(struct json *in, struct text *text);

#endif /* LAZYFS_TOC_JSON_H */
