/* SPDX-License-Identifier: Apache-2.0 */
/* What the texts of an entry mean: digests, times, paths, kinds. */
#define _GNU_SOURCE
#include "toc_values.h"

#include <string.h>

#define MAX_DEPTH 1024
#define SECONDS_A_DAY 86400
#define EPOCH_DAY 719162 /* days from 0001-01-01 to 1970-01-01 */

bool toc_read_digest(struct text text, uint8_t digest[DIGEST_SIZE])
{
	static const char prefix[] = "sha256:";
	static const uint8_t values[256] = {
		['0'] = 16, ['1'] = 17, ['2'] = 18, ['3'] = 19,
		['4'] = 20, ['5'] = 21, ['6'] = 22, ['7'] = 23,
		['8'] = 24, ['9'] = 25, ['a'] = 26, ['b'] = 27,
		['c'] = 28, ['d'] = 29, ['e'] = 30, ['f'] = 31,
	}; /* and 16, to tell them from what is no digit */
	unsigned i, high, low, all = 16;
	const uint8_t *at;

	if (text.size != sizeof(prefix) - 1 + 2 * DIGEST_SIZE ||
	    memcmp(text.bytes, prefix, sizeof(prefix) - 1) != 0)
		return false;
	at = text.bytes + sizeof(prefix) - 1;
	for (i = 0; i < DIGEST_SIZE; i++, at += 2) {
		high = values[at[0]];
		low = values[at[1]];
		all &= high & low;
		digest[i] = (uint8_t)((high << 4 | (low & 15)) & 0xFF);
	}
	return all & 16;
}

/* Read 'count' digits. */
static bool read_digits(const uint8_t *at, unsigned count, uint32_t *number)
{
	for (*number = 0; count; count--, at++) {
		if (*at < '0' || *at > '9')
			return false;
		*number = *number * 10 + (uint32_t)(*at - '0');
	}
	return true;
}

/* Read YYYY-MM-DDTHH:MM:SS[.fraction]Z. */
bool toc_read_time(struct text text, struct toc_time *time)
{
	static const uint8_t days_in[] = {31, 28, 31, 30, 31, 30,
					  31, 31, 30, 31, 30, 31};
	static const char form[] = "    -  -  T  :  :  ";
	uint32_t year, month, day, hour, minute, second, before, i, days;
	const uint8_t *at = text.bytes;
	uint32_t place = 100000000;
	bool leap;

	if (text_same(text, time->text))
		return true;
	if (text.size < 20 || text.size > 50 || at[text.size - 1] != 'Z')
		return false;
	for (i = 0; i < sizeof(form) - 1; i++)
		if (form[i] != ' ' && at[i] != (uint8_t)form[i])
			return false;
	if (!read_digits(at, 4, &year) || !read_digits(at + 5, 2, &month) ||
	    !read_digits(at + 8, 2, &day) || !read_digits(at + 11, 2, &hour) ||
	    !read_digits(at + 14, 2, &minute) ||
	    !read_digits(at + 17, 2, &second))
		return false;
	leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
	if (year < 1 || month < 1 || month > 12 || day < 1 ||
	    day > days_in[month - 1] + (uint32_t)(month == 2 && leap) ||
	    hour > 23 || minute > 59 || second > 59)
		return false;
	time->nanoseconds = 0;
	if (text.size > 20) {
		if (at[19] != '.' || text.size == 21)
			return false;
		for (i = 20; i < text.size - 1; i++, place /= 10) {
			if (at[i] < '0' || at[i] > '9')
				return false;
			time->nanoseconds += (uint32_t)(at[i] - '0') * place;
		}
	}
	before = year - 1;
	days = before * 365 + before / 4 - before / 100 + before / 400;
	for (i = 1; i < month; i++)
		days += days_in[i - 1];
	days += (uint32_t)(month > 2 && leap) + day - 1;
	time->seconds = ((int64_t)days - EPOCH_DAY) * SECONDS_A_DAY +
			(int64_t)(hour * 3600 + minute * 60 + second);
	time->text = text;
	return true;
}

/* Write the normalised form of a path, with NULs for slashes, to the arena. */
bool toc_read_path(struct json *in, const struct lfs_toc_limits *limits,
		   struct text text, const uint8_t **path, uint32_t *path_size)
{
	uint8_t *start = in->arena + in->arena_used, *out = start;
	const uint8_t *at = text.bytes, *end = at + text.size, *slash;
	uint32_t depth = 0;
	size_t size;

	for (; at < end; at = slash + 1) {
		slash = memchr(at, '/', (size_t)(end - at));
		if (!slash)
			slash = end;
		size = (size_t)(slash - at);
		if (size == 0 || (size == 1 && *at == '.'))
			continue;
		if (size == 2 && at[0] == '.' && at[1] == '.')
			return false; /* rare, and not worth a way back */
		if (size > limits->component_size || ++depth > MAX_DEPTH ||
		    depth > limits->depth)
			return false;
		if (out != start)
			*out++ = 0;
		memcpy(out, at, size);
		out += size;
	}
	*path = start;
	*path_size = (uint32_t)(out - start);
	in->arena_used += *path_size;
	return *path_size <= limits->path_size;
}

uint8_t toc_kind(struct text type)
{
	static const struct {
		const char *name;
		uint8_t kind;
	} kinds[] = {
		{"reg", KIND_REGULAR},	   {"dir", KIND_DIRECTORY},
		{"symlink", KIND_SYMLINK}, {"hardlink", KIND_HARDLINK},
		{"char", KIND_CHAR},	   {"block", KIND_BLOCK},
		{"fifo", KIND_FIFO},
	};
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (text_is(type, kinds[i].name))
			return kinds[i].kind;
	return 0;
}
