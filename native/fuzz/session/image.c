/* SPDX-License-Identifier: Apache-2.0 */
/* What the image holds, and what of it is resident. */
#define _GNU_SOURCE /* fallocate() */
#include "image.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "serving/server_state.h"

const uint64_t CHUNK_START[2][4] = {{0, 4096, 8192, BIG_SIZE},
					   {0, FILE_SIZE}};
const unsigned CHUNK_COUNT[2] = {3, 1};

/* The names of the root and of "dir", in their order. */
bool name_in(const struct session *s, uint64_t node, uint32_t number,
		    char *name, uint64_t *nid)
{
	static const char names[NAMES_ROOT][8] = {
		".", "..", "big", "dir", "empty", "file", "link", "null"};
	const struct made *made = &s->made;
	const uint64_t nids[NAMES_ROOT] = {1,	       1,	   made->big,
					   made->dir,  made->empty, made->file,
					   made->link, made->null};

	if (node == 1 || node == made->root) {
		if (number >= NAMES_ROOT)
			return false;
		strcpy(name, names[number]);
		*nid = nids[number];
		return true;
	}
	CHECK(node == made->dir);
	if (number >= DIR_COUNT + 2)
		return false;
	if (number < 2) {
		strcpy(name, names[number]);
		*nid = number ? 1 : made->dir;
		return true;
	}
	snprintf(name, 8, "n%04u", number - 2);
	*nid = made->empty;
	return true;
}

bool is_directory(const struct session *s, uint64_t node)
{
	return node == 1 || node == s->made.root || node == s->made.dir;
}

/* Is it one of the image's?  Others may look like inodes, or not. */
bool is_node(const struct session *s, uint64_t node)
{
	const struct made *made = &s->made;

	return is_directory(s, node) || node == made->big ||
	       node == made->empty || node == made->file ||
	       node == made->link || node == made->null;
}

bool file_of(const struct session *s, uint64_t node, unsigned *device,
		    uint64_t *size)
{
	*device = node == s->made.file;
	*size = node == s->made.big    ? BIG_SIZE
		: node == s->made.file ? FILE_SIZE
				       : 0;
	return *size || node == s->made.empty;
}

/* Are all chunks of these bytes resident; are their pages there, too? */
void look(const struct session *s, unsigned device, uint64_t start,
		 uint64_t end, bool *is_resident, bool *is_intact)
{
	unsigned i;

	*is_resident = *is_intact = true;
	for (i = 0; i < CHUNK_COUNT[device]; i++) {
		if (CHUNK_START[device][i] >= end ||
		    CHUNK_START[device][i + 1] <= start)
			continue;
		if (s->made.states[device][i] != LFS_RESIDENT)
			*is_resident = false;
		if (!s->is_intact[device][i])
			*is_intact = false;
	}
}

static void write_content(struct session *s, unsigned device, unsigned chunk,
			  bool is_poison)
{
	uint64_t start = CHUNK_START[device][chunk], i;
	uint64_t size = CHUNK_START[device][chunk + 1] - start;
	uint8_t bytes[8192];

	for (i = 0; i < size; i++)
		bytes[i] = is_poison ? POISON
				     : content_byte(device + 1, start + i);
	CHECK(pwrite(s->contents[device], bytes, size, (off_t)start) ==
	      (ssize_t)size);
}

void fetch(struct session *s, unsigned device, unsigned chunk)
{
	write_content(s, device, chunk, false);
	s->is_intact[device][chunk] = true;
	__atomic_store_n(&s->made.states[device][chunk], LFS_RESIDENT,
			 __ATOMIC_RELEASE);
}

void evict(struct session *s, unsigned device, unsigned chunk,
		  uint8_t state)
{
	__atomic_store_n(&s->made.states[device][chunk], state,
			 __ATOMIC_RELEASE);
	write_content(s, device, chunk, true);
	s->is_intact[device][chunk] = true; /* as long as it is not marked */
}

/* Take whole pages out of the content file, the marks staying. */
void lose(struct session *s, unsigned device, unsigned chunk, bool cuts)
{
	uint64_t start = CHUNK_START[device][chunk];
	unsigned i;

	if (!cuts) {
		CHECK(fallocate(s->contents[device],
				FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)start, 4096) == 0);
		s->is_intact[device][chunk] = false;
		return;
	}
	CHECK(ftruncate(s->contents[device], (off_t)start) == 0);
	for (i = chunk; i < CHUNK_COUNT[device]; i++)
		s->is_intact[device][i] = false;
}
