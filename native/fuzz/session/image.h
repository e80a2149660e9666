/* SPDX-License-Identifier: Apache-2.0 */
/* What the image holds, and what of it is resident. */
#ifndef LAZYFS_FUZZ_IMAGE_H
#define LAZYFS_FUZZ_IMAGE_H

#include "session.h"

extern const uint64_t CHUNK_START[2][4];
extern const unsigned CHUNK_COUNT[2];

/* The names of the root and of "dir", in their order; false: there is no such
 * number. */
bool name_in(const struct session *s, uint64_t node, uint32_t number,
	     char *name, uint64_t *nid);
bool is_directory(const struct session *s, uint64_t node);
/* Is it one of the image's?  Others may look like inodes, or not. */
bool is_node(const struct session *s, uint64_t node);
/* Is it a regular file? */
bool file_of(const struct session *s, uint64_t node, unsigned *device,
	     uint64_t *size);

/* Are all chunks of these bytes resident; are their pages there, too? */
void look(const struct session *s, unsigned device, uint64_t start,
	  uint64_t end, bool *is_resident, bool *is_intact);
void fetch(struct session *s, unsigned device, unsigned chunk);
void evict(struct session *s, unsigned device, unsigned chunk, uint8_t state);
/* Take whole pages out of the content file, the marks staying. */
void lose(struct session *s, unsigned device, unsigned chunk, bool cuts);

#endif /* LAZYFS_FUZZ_IMAGE_H */
