/* SPDX-License-Identifier: Apache-2.0 */
/* What the test programs share: a made image, guarded buffers, a fake kernel.
 */
#ifndef LAZYFS_TESTS_SUPPORT_H
#define LAZYFS_TESTS_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>

#include "serving/fuse_abi.h"
#include "lazyfs_core.h"

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__,       \
				__LINE__, #condition);                         \
			abort();                                               \
		}                                                              \
	} while (0)

/* An image of two layers.  Its root has, besides the dots,
 *   big     10,000 bytes on device 1, in chunks of 4,096
 *   dir     a directory of DIR_COUNT empty files n0000 ..., of several blocks
 *   empty   an empty file
 *   file    5,000 bytes on device 2, in one chunk
 *   link    a symlink to "dir/n0000"
 *   null    a character device 1:3
 */
#define INDEX_SIZE (6 * 4096)
#define DIR_COUNT 600
#define BIG_SIZE 10000
#define BIG_CHUNK 4096
#define FILE_SIZE 5000
#define LINK_TARGET "dir/n0000"
#define TABLE_SIZE(count) (64 + 80 * (size_t)(count) + 32)
#define PROVENANCE_SIZE (32 + 40 * 2 + 32)

struct made {
	uint8_t index[INDEX_SIZE];
	uint8_t tables[2][TABLE_SIZE(3)];
	size_t table_sizes[2];
	uint8_t provenance[PROVENANCE_SIZE];
	uint8_t states[2][3];
	uint64_t root, big, dir, empty, file, link, null;
};

void make_image(struct made *made);

/* Write 'size' bytes of a number, the least first. */
void put_number(uint8_t *out, uint64_t value, unsigned size);

/* Write a layer table of 'count' records of (device offset, size). */
void make_table(uint8_t *bytes, uint64_t device_size,
		const uint64_t (*records)[2], uint64_t count);

/* guarded_copy() copies bytes to memory that ends at a page that cannot be
 * touched; give it back with guarded_free(). */
uint8_t *guarded_copy(const uint8_t *bytes, size_t size);
void guarded_free(uint8_t *copy, size_t size);

/* exercise_index() reads everything that can be read of an index: each place is
 * taken for an inode of any kind.  exercise_table() and exercise_provenance()
 * likewise.  They only have to come back. */
void exercise_index(const struct lfs_index *index);
void exercise_table(const struct lfs_table *table);
void exercise_provenance(const struct lfs_provenance *provenance);

/* A table of contents of a layer with two files, 'file' and 'dir/big', among
 * others. */
extern const char TOC_SAMPLE[];

/* scan_toc() returns NULL for what is not usual.  write_index() does all that
 * follows, with bodies of extended attributes that it makes up; the image is
 * the caller's, and NULL where that is not usual.  put_superblock() makes it one
 * that can be opened.  exercise_toc() does it all with two layers of these
 * bytes, and has only to come back. */
struct lfs_toc *scan_toc(const uint8_t *json, size_t size);
uint8_t *write_index(struct lfs_toc *const *tocs, size_t count, size_t *size);
void put_superblock(uint8_t *image, size_t size, unsigned device_count);
void exercise_toc(const uint8_t *json, size_t size);

uint32_t random_number(void); /* the same numbers in each run */
void random_start(uint64_t number); /* others for each number but 0 */

/* A server on a socket, of which the other end plays the kernel. */
struct fake {
	struct made made;
	struct lfs_server *server;
	int kernel;
	int device;
	int contents[2];
	uint64_t unique; /* of the last request */
};

struct fake_reply {
	int32_t error;
	uint64_t unique;
	size_t size;
	uint8_t data[LFS_MAX_READ + 4096];
};

void fake_open(struct fake *fake, const struct lfs_options *options);
void fake_close(struct fake *fake);

/* fake_send() sends a request and returns its unique number; fake_receive()
 * waits for a reply; fake_ask() does both and returns the error of the reply.
 */
uint64_t fake_send(struct fake *fake, uint32_t opcode, uint64_t node,
		   const void *body, size_t size);
void fake_receive(struct fake *fake, struct fake_reply *reply);
int fake_ask(struct fake *fake, uint32_t opcode, uint64_t node,
	     const void *body, size_t size, struct fake_reply *reply);
uint64_t fake_send_read(struct fake *fake, uint64_t node, uint64_t offset,
			uint32_t size);
/* fake_take() waits for one event. */
struct lfs_event fake_take(struct fake *fake);
/* Is nothing sent to the kernel now? */
bool fake_is_silent(struct fake *fake);

/* The byte at 'offset' of the contents of a device. */
uint8_t content_byte(unsigned device, uint64_t offset);

#endif /* LAZYFS_TESTS_SUPPORT_H */
