/* SPDX-License-Identifier: Apache-2.0 */
/* Paths of entries, oddly written. */
#include "paths.h"

#include <string.h>

/* Names that sort closely, that JSON escapes, and that mean something. */
static const char *const NAMES[] = {
	"a",	       "b",	  "ab",	      "a-",
	"-",	       ".a",	  "...",      "+",
	"\xc3\xa9",    "x\"y",	  "back\\s",  "tab\tx",
	"\xf0\x9f\x98\x80", "~",  "d",	      "n100",
	"n0",	       "a\x7f",	  "<&>",      ".prefetch.landmark",
	".no.prefetch.landmark",  ".wh.a",    ".wh.b",	  ".wh.d",
	".wh..wh..opq", ".wh..wh.plnk", ".wh.n100", ".wh.\xc3\xa9",
	".wh..a",      ".wh..wh..opqx", "e",  "f",
};
#define NAME_COUNT (sizeof(NAMES) / sizeof(NAMES[0]))
static const char *const RARE[] = {"..", ".wh.", ".wh..", ".wh...", ".", ""};

void add(char *text, size_t *size, const char *more)
{
	size_t more_size = strlen(more);

	if (*size + more_size >= MAX_PATH_TEXT)
		return;
	memcpy(text + *size, more, more_size);
	*size += more_size;
}

void add_name(struct maker *in, char *text, size_t *size)
{
	static const char many[] =
		"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
		"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
		"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
		"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
	uint8_t which = next(in);

	if (which < 224)
		add(text, size, NAMES[which % NAME_COUNT]);
	else if (which < 248) /* 256 to 250 bytes, and to 190 */
		add(text, size,
		    many + (which < 231 ? which - 224u : 8u * (which - 230u)));
	else
		add(text, size, RARE[which % 6]);
}

size_t make_path(struct maker *in, char *text)
{
	static const char *const prefixes[] = {"", "./", "/", ".//", "",
					       "", "",	 ""};
	static const char *const slashes[] = {"/", "/", "/", "//", "/./"};
	const struct made_layer *layer = in->layer;
	uint8_t shape = next(in);
	unsigned depth = 1 + shape % 3;
	size_t size = 0;

	add(text, &size, prefixes[shape >> 5]);
	if (shape & 16 && layer->count) {
		add(text, &size, layer->items[next(in) % layer->count].path);
		if (!(shape & 8))
			add(text, &size, "/");
		else
			depth = 0; /* the very same path */
	}
	while (depth--) {
		add_name(in, text, &size);
		if (depth)
			add(text, &size, slashes[(shape + depth) % 5]);
	}
	if (shape % 16 == 4)
		add(text, &size, "/");
	return size;
}

bool keep_path(struct maker *in, const char *text, size_t size,
	       const char **path, size_t *path_size)
{
	static char clean[MAX_PATH_TEXT + 1];
	size_t start = 0, end, used = 0, depth = 0;
	bool is_usual = true;

	for (; start < size; start = end + 1) {
		for (end = start; end < size && text[end] != '/';)
			end++;
		if (end == start || (end == start + 1 && text[start] == '.'))
			continue;
		if (end - start > 255 ||
		    (end == start + 2 && !memcmp(text + start, "..", 2)))
			is_usual = false;
		if (used)
			clean[used++] = '/';
		memcpy(clean + used, text + start, end - start);
		used += end - start;
		depth++;
	}
	*path = keep(in, clean, used);
	*path_size = used;
	return is_usual && used <= 4095 && depth <= 1024;
}
