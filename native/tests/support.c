/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void store(uint8_t *out, uint64_t value, unsigned size)
{
	while (size--) {
		*out++ = (uint8_t)value;
		value >>= 8;
	}
}

/* Write an inode at slot 'nid'. */
static void put_inode(uint8_t *index, uint64_t nid, unsigned format,
		      unsigned xattr_words, unsigned mode, uint64_t size,
		      uint64_t data)
{
	uint8_t *inode = index + nid * 32;

	store(inode, format, 2);
	store(inode + 2, xattr_words, 2);
	store(inode + 4, mode, 2);
	store(inode + 8, size, 8);
	store(inode + 16, data, 4);
	store(inode + 24, 1000, 4);
	store(inode + 28, 100000, 4);
	store(inode + 32, (uint64_t)-86400, 8);
	store(inode + 40, 5, 4);
	store(inode + 44, 1, 4);
}

/* Write a directory block of 'count' names; returns the bytes used. */
static size_t put_names(uint8_t *block, const char (*names)[8],
			const uint64_t *nids, const uint8_t *kinds,
			size_t count)
{
	size_t i, end = 12 * count;

	for (i = 0; i < count; i++) {
		store(block + 12 * i, nids[i], 8);
		store(block + 12 * i + 8, end, 2);
		block[12 * i + 10] = kinds[i];
		memcpy(block + end, names[i], strlen(names[i]));
		end += strlen(names[i]);
	}
	return end;
}

static size_t put_xattr(uint8_t *out, unsigned prefix, const char *rest,
			const char *value)
{
	size_t rest_size = strlen(rest), value_size = strlen(value);

	out[0] = (uint8_t)rest_size;
	out[1] = (uint8_t)prefix;
	store(out + 2, value_size, 2);
	memcpy(out + 4, rest, rest_size);
	memcpy(out + 4 + rest_size, value, value_size);
	return (4 + rest_size + value_size + 3) & ~(size_t)3;
}

static void put_dir(struct made *made, uint64_t nid)
{
	/* 215 entries of 12 + 5 bytes fill a block; the dots come first */
	static char names[DIR_COUNT + 2][8];
	static uint64_t nids[DIR_COUNT + 2];
	static uint8_t kinds[DIR_COUNT + 2];
	size_t i, at = 0, count, used = 0;
	unsigned block = 2;

	for (i = 0; i < DIR_COUNT + 2; i++) {
		snprintf(names[i], sizeof(names[i]), "n%04u",
			 (unsigned)(i - 2) % 10000);
		nids[i] = made->empty;
		kinds[i] = 1;
	}
	strcpy(names[0], ".");
	strcpy(names[1], "..");
	nids[0] = nid;
	nids[1] = made->root;
	kinds[0] = kinds[1] = 2;
	while (at < DIR_COUNT + 2) {
		count = DIR_COUNT + 2 - at < 230 ? DIR_COUNT + 2 - at : 230;
		used = put_names(made->index + block * 4096, names + at,
				 nids + at, kinds + at, count);
		CHECK(used <= 4096);
		at += count;
		block++;
	}
	put_inode(made->index, nid, 1, 0, S_IFDIR | 0755,
		  (block - 3) * 4096 + used, 2);
}

static void put_file(uint8_t *index, uint64_t nid, uint64_t size,
		     unsigned device, unsigned block)
{
	uint8_t *chunk = index + nid * 32 + 64;

	put_inode(index, nid, 9, 0, S_IFREG | 0644, size, 0x20 | 4);
	store(chunk + 2, device, 2);
	store(chunk + 4, block, 4);
}

static void put_root(struct made *made)
{
	static const char names[][8] = {".",	 "..",	 "big",	 "dir",
					"empty", "file", "link", "null"};
	static const uint8_t kinds[] = {2, 2, 1, 2, 1, 1, 7, 3};
	uint64_t nids[] = {made->root,	made->root, made->big,	made->dir,
			   made->empty, made->file, made->link, made->null};
	uint8_t *xattrs = made->index + made->root * 32 + 64;
	size_t size = 12, used;

	size += put_xattr(xattrs + size, 1, "lazyfs.file.x", "forged");
	size += put_xattr(xattrs + size, 1, "lazyfs.schema", "1");
	size += put_xattr(xattrs + size, 1, "note", "hi");
	size += put_xattr(xattrs + size, 2, "", "acl");
	used = put_names(xattrs + size, names, nids, kinds, 8);
	put_inode(made->index, made->root, 5, (unsigned)(size - 12) / 4 + 1,
		  S_IFDIR | 0755, used, 0);
	CHECK(made->root * 32 + 64 + size + used <= 4096);
}

void make_table(uint8_t *bytes, uint64_t device_size,
		const uint64_t (*records)[2], uint64_t count)
{
	uint64_t i;

	memset(bytes, 0, TABLE_SIZE(count));
	memcpy(bytes, "LFSTABL1", 8);
	store(bytes + 8, 1, 4);
	store(bytes + 12, 80, 4);
	store(bytes + 16, count, 8);
	store(bytes + 24, device_size, 8);
	for (i = 0; i < count; i++) {
		store(bytes + 64 + 80 * i, records[i][0], 8);
		store(bytes + 64 + 80 * i + 8, records[i][1], 8);
	}
}

void make_image(struct made *made)
{
	static const uint64_t big[][2] = {
		{0, 4096}, {4096, 4096}, {8192, BIG_SIZE - 8192}};
	static const uint64_t file[][2] = {{0, FILE_SIZE}};
	uint8_t *superblock = made->index + 1024;
	uint8_t *devices = made->index + 1152;
	uint8_t *origins = made->provenance + 32;

	memset(made, 0, sizeof(*made));
	store(superblock, 0xE0F5E1E2, 4);
	store(superblock + 8, 3, 4);
	superblock[12] = 12;
	store(superblock + 14, 44, 2);
	store(superblock + 16, 7, 8);
	store(superblock + 36, INDEX_SIZE / 4096, 4);
	store(superblock + 80, 0xC, 4);
	store(superblock + 86, 2, 2);
	store(superblock + 88, 9, 2);
	store(devices + 64, 3, 4);
	store(devices + 128 + 64, 2, 4);

	made->root = 44;
	made->big = 64;
	made->dir = 68;
	made->empty = 72;
	made->file = 76;
	made->link = 80;
	made->null = 84;
	put_root(made);
	put_file(made->index, made->big, BIG_SIZE, 1, 0);
	put_dir(made, made->dir);
	put_inode(made->index, made->empty, 1, 0, S_IFREG | 0600, 0, 0);
	put_file(made->index, made->file, FILE_SIZE, 2, 0);
	put_inode(made->index, made->link, 5, 0, S_IFLNK | 0777,
		  strlen(LINK_TARGET), 0);
	memcpy(made->index + made->link * 32 + 64, LINK_TARGET,
	       strlen(LINK_TARGET));
	put_inode(made->index, made->null, 1, 0, S_IFCHR | 0666, 0, 0x103);

	make_table(made->tables[0], 12288, big, 3);
	make_table(made->tables[1], 8192, file, 1);
	made->table_sizes[0] = TABLE_SIZE(3);
	made->table_sizes[1] = TABLE_SIZE(1);
	memset(made->states, 2, sizeof(made->states));

	memcpy(made->provenance, "LFSPROV1", 8);
	store(made->provenance + 8, 40, 4);
	store(made->provenance + 16, 2, 8);
	store(origins, made->big, 4);
	store(origins + 6, 1, 2);
	memset(origins + 8, 0xAB, 32);
	store(origins + 40, made->file, 4);
	store(origins + 44, 1, 2);
}

uint8_t *guarded_copy(const uint8_t *bytes, size_t size)
{
	size_t room = (size + 4095) & ~(size_t)4095;
	uint8_t *map = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(map != MAP_FAILED);
	CHECK(mprotect(map + room, 4096, PROT_NONE) == 0);
	if (size)
		memcpy(map + room - size, bytes, size);
	return map + room - size;
}

void guarded_free(uint8_t *copy, size_t size)
{
	size_t room = (size + 4095) & ~(size_t)4095;

	munmap(copy + size - room, room + 4096);
}

static void exercise_inode(const struct lfs_index *index,
			   const struct lfs_inode *inode)
{
	static const char *const names[] = {"", "n0300", "zzz", "."};
	const uint8_t *target;
	struct lfs_entries entries;
	struct lfs_extent extent;
	struct lfs_xattrs xattrs;
	struct lfs_entry entry;
	struct lfs_xattr xattr;
	size_t i, size, steps = 0;
	volatile uint8_t seen = 0;
	uint64_t nid;

	if (lfs_index_readlink(index, inode, &target, &size) == LFS_OK)
		for (i = 0; i < size; i++)
			seen ^= target[i];
	if (lfs_index_extent(index, inode, &extent) == LFS_OK && extent.device)
		CHECK(extent.offset + extent.size <=
		      lfs_index_device_size(index, extent.device));
	for (i = 0; i < 4; i++)
		lfs_index_lookup(index, inode, (const uint8_t *)names[i],
				 strlen(names[i]), &nid);
	if (lfs_entries_open(&entries, index, inode, 0) == LFS_OK) {
		while (lfs_entries_next(&entries, &entry) == LFS_OK) {
			for (i = 0; i < entry.name_size; i++)
				seen ^= entry.name[i];
			CHECK(++steps <= index->size);
		}
	}
	lfs_entries_open(&entries, index, inode, UINT64_MAX - 5);
	if (S_ISDIR(inode->mode))
		lfs_entries_next(&entries, &entry);
	if (lfs_xattrs_open(&xattrs, index, inode) == LFS_OK) {
		while (lfs_xattrs_next(&xattrs, &xattr) == LFS_OK) {
			lfs_xattr_is(&xattr, "user.note", 9);
			for (i = 0; i < xattr.value_size; i++)
				seen ^= xattr.value[i];
		}
	}
}

void exercise_index(const struct lfs_index *index)
{
	struct lfs_inode inode;
	uint64_t nid;

	for (nid = 0; nid <= index->size / 32 + 2; nid++)
		if (lfs_index_inode(index, nid, &inode) == LFS_OK)
			exercise_inode(index, &inode);
	CHECK(lfs_index_inode(index, UINT64_MAX, &inode) == LFS_CORRUPT);
	CHECK(lfs_index_inode(index, UINT64_MAX / 32 + 1, &inode) ==
	      LFS_CORRUPT);
}

void exercise_table(const struct lfs_table *table)
{
	uint64_t start, first, last;
	unsigned i;

	for (i = 0; i < 200; i++) {
		start = random_number() % 20000;
		if (lfs_table_covering(table, start, start + 1 + i * 50, &first,
				       &last) == LFS_OK)
			CHECK(first < last && last <= table->count);
		lfs_table_overlapping(table, start, start + 1 + i * 50, &first,
				      &last);
		CHECK(first <= last && last <= table->count);
	}
	lfs_table_covering(table, UINT64_MAX - 4, UINT64_MAX, &first, &last);
	CHECK(lfs_table_covering(table, 5, 5, &first, &last) == LFS_CORRUPT);
}

void exercise_provenance(const struct lfs_provenance *provenance)
{
	struct lfs_origin origin;
	volatile uint8_t seen = 0;
	uint64_t nid;

	for (nid = 0; nid < 200; nid++)
		if (lfs_provenance_of(provenance, nid, &origin) == LFS_OK &&
		    origin.digest)
			seen ^= origin.digest[31];
	lfs_provenance_of(provenance, UINT64_MAX, &origin);
}

uint32_t random_number(void)
{
	static uint64_t seed = 88172645463325252u;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 16);
}

uint8_t content_byte(unsigned device, uint64_t offset)
{
	return (uint8_t)(offset * 31 + offset / 251 + device);
}

static int make_content(unsigned device, size_t size)
{
	int fd = memfd_create("content", MFD_CLOEXEC);
	size_t i;
	uint8_t byte;

	CHECK(fd >= 0);
	for (i = 0; i < size; i++) {
		byte = content_byte(device, i);
		CHECK(write(fd, &byte, 1) == 1);
	}
	return fd;
}

void fake_open(struct fake *fake, const struct lfs_options *options)
{
	static const struct lfs_attribute attributes[] = {
		{"user.lazyfs.fixed", (const uint8_t *)"42", 2},
		{"user.lazyfs.health", NULL, 0},
	};
	struct lfs_layer layers[2];
	struct lfs_image image = {.layers = layers,
				  .attributes = attributes,
				  .attribute_count = 2};
	int ends[2], room = 4 << 20;
	unsigned i;

	make_image(&fake->made);
	fake->unique = 0;
	CHECK(lfs_index_open(&image.index, fake->made.index, INDEX_SIZE) ==
	      LFS_OK);
	CHECK(lfs_provenance_open(&image.provenance, fake->made.provenance,
				  PROVENANCE_SIZE) == LFS_OK);
	for (i = 0; i < 2; i++) {
		CHECK(lfs_table_open(&layers[i].table, fake->made.tables[i],
				     fake->made.table_sizes[i]) == LFS_OK);
		layers[i].states = fake->made.states[i];
		layers[i].states_size = (size_t)layers[i].table.count;
		fake->contents[i] = make_content(i + 1, 12288);
		layers[i].content_fd = fake->contents[i];
		layers[i].digest = i ? "sha256:upper" : "sha256:lower";
		layers[i].diff_id = "sha256:diff";
	}
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	fake->device = ends[0];
	fake->kernel = ends[1];
	CHECK(lfs_server_create(&fake->server, fake->device, &image, options) ==
	      0);
	CHECK(lfs_server_start(fake->server) == 0);
	CHECK(lfs_server_start(fake->server) == EALREADY);
}

void fake_close(struct fake *fake)
{
	lfs_server_destroy(fake->server);
	close(fake->kernel);
	close(fake->device);
	close(fake->contents[0]);
	close(fake->contents[1]);
}

uint64_t fake_send(struct fake *fake, uint32_t opcode, uint64_t node,
		   const void *body, size_t size)
{
	struct {
		struct fuse_in_header header;
		uint8_t body[8192];
	} request = {.header = {.opcode = opcode, .nodeid = node}};

	CHECK(size <= sizeof(request.body));
	request.header.len = (uint32_t)(sizeof(request.header) + size);
	request.header.unique = fake->unique += 2;
	if (size)
		memcpy(request.body, body, size);
	CHECK(write(fake->kernel, &request, request.header.len) ==
	      (ssize_t)request.header.len);
	return request.header.unique;
}

void fake_receive(struct fake *fake, struct fake_reply *reply)
{
	static uint8_t
		message[sizeof(struct fuse_out_header) + LFS_MAX_READ + 4096];
	struct pollfd wait = {.fd = fake->kernel, .events = POLLIN};
	struct fuse_out_header header;
	ssize_t size;

	CHECK(poll(&wait, 1, 10000) == 1);
	size = read(fake->kernel, message, sizeof(message));
	CHECK(size >= (ssize_t)sizeof(header));
	memcpy(&header, message, sizeof(header));
	CHECK(header.len == (size_t)size);
	CHECK(header.error <= 0 && header.error > -4096);
	CHECK(!header.error || size == sizeof(header));
	reply->error = -header.error;
	reply->unique = header.unique;
	reply->size = (size_t)size - sizeof(header);
	memcpy(reply->data, message + sizeof(header), reply->size);
}

int fake_ask(struct fake *fake, uint32_t opcode, uint64_t node,
	     const void *body, size_t size, struct fake_reply *reply)
{
	uint64_t unique = fake_send(fake, opcode, node, body, size);

	fake_receive(fake, reply);
	CHECK(reply->unique == unique);
	return reply->error;
}

uint64_t fake_send_read(struct fake *fake, uint64_t node, uint64_t offset,
			uint32_t size)
{
	struct fuse_read_in in = {.offset = offset, .size = size};

	return fake_send(fake, FUSE_READ, node, &in, sizeof(in));
}

struct lfs_event fake_take(struct fake *fake)
{
	struct pollfd wait = {.fd = lfs_server_event_fd(fake->server),
			      .events = POLLIN};
	struct lfs_event event;

	do {
		CHECK(poll(&wait, 1, 10000) == 1);
	} while (!lfs_server_take(fake->server, &event, 1));
	return event;
}

bool fake_is_silent(struct fake *fake)
{
	struct pollfd wait = {.fd = fake->kernel, .events = POLLIN};

	return poll(&wait, 1, 0) == 0;
}

#define D64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define FILE_HEAD "\"type\":\"reg\",\"digest\":\"sha256:" D64 "\","

const char TOC_SAMPLE[] =
	"{\"version\":1,\"entries\":["
	"{\"name\":\"dir/\",\"type\":\"dir\",\"mode\":493,\"uid\":5,\"gid\":6,"
	"\"modtime\":\"2024-02-29T12:00:00.25Z\"},\n"
	"{\"name\":\"empty\"," FILE_HEAD "\"xattrs\":{\"user.a\":\"YQ==\"}},"
	"{\"name\":\"file\"," FILE_HEAD "\"size\":9,\"offset\":10},"
	"{\"name\":\"dir/big\"," FILE_HEAD "\"size\":12,\"offset\":20,"
	"\"chunkSize\":8,\"chunkDigest\":\"sha256:" D64 "\"},"
	"{\"name\":\"dir/big\",\"type\":\"chunk\",\"chunkOffset\":8,\"offset\":30,"
	"\"chunkDigest\":\"sha256:" D64 "\"},"
	"{\"name\":\"link\",\"type\":\"symlink\",\"linkName\":\"d\\u0069r/\\ud83d\\ude00\"},"
	"{\"name\":\"more\",\"type\":\"hardlink\",\"linkName\":\"./dir//big\"},"
	"{\"name\":\"n/.wh.x\",\"type\":\"reg\"},"
	"{\"name\":\"n/null\",\"type\":\"char\",\"devMajor\":1,\"devMinor\":3}"
	"],\"tarSplitDigest\":\"sha25\"}";

struct lfs_toc *scan_toc(const uint8_t *json, size_t size)
{
	static const struct lfs_toc_limits limits = {
		.blob_size = 1000,
		.ratio = 1032,
		.entries = 1000,
		.path_size = 4095,
		.component_size = 255,
		.depth = 1024,
		.implied_size = 1 << 20,
		.link_size = 4095,
		.chunk_size = 1 << 28,
		.stream_size = 1 << 30,
		.device_size = (uint64_t)1 << 44,
		.block_size = 4096,
		.codec = 1,
	};
	struct lfs_toc *toc = NULL;

	return lfs_toc_scan(&toc, json, size, &limits) == LFS_OK ? toc : NULL;
}

uint8_t *write_index(struct lfs_toc *const *tocs, size_t count, size_t *size)
{
	static const uint8_t body[64];
	uint64_t inode_count, image_size, provenance_size;
	uint8_t *image = NULL, *provenance = NULL;
	struct lfs_body bodies[64];
	struct lfs_tree *tree;
	size_t i, found;

	if (lfs_tree_merge(&tree, tocs, count) != LFS_OK)
		return NULL;
	found = lfs_tree_xattrs(tree, NULL, 0);
	for (i = 0; i < 64; i++) {
		bodies[i].bytes = body;
		bodies[i].size = i % 2 ? 0 : 16 + 4 * (i % 12);
	}
	if (found <= 64 &&
	    lfs_tree_number(tree, 1152 + 128 * count, bodies, found,
			    count > 1 ? &bodies[2] : NULL) == LFS_OK) {
		lfs_tree_sizes(tree, &inode_count, &image_size,
			       &provenance_size);
		image = calloc(1, image_size);
		provenance = malloc(provenance_size + 1);
		CHECK(image && provenance);
		CHECK(lfs_tree_write(tree, image, provenance) == LFS_OK);
		*size = image_size;
	}
	free(provenance);
	lfs_tree_free(tree);
	return image;
}

void put_superblock(uint8_t *image, size_t size, unsigned device_count)
{
	uint8_t *superblock = image + 1024;
	unsigned i;

	store(superblock, 0xE0F5E1E2, 4);
	store(superblock + 8, 3, 4);
	superblock[12] = 12;
	store(superblock + 14, (1152 + 128 * device_count) / 32, 2);
	store(superblock + 16, 1000, 8);
	store(superblock + 36, size / 4096, 4);
	store(superblock + 80, 0xC, 4);
	store(superblock + 86, device_count, 2);
	store(superblock + 88, 9, 2);
	for (i = 0; i < device_count; i++)
		store(image + 1152 + 128 * i + 64, 1 << 20, 4);
}

void exercise_toc(const uint8_t *json, size_t size)
{
	struct lfs_toc *tocs[2];
	struct lfs_toc_extent extent;
	struct lfs_toc_facts facts;
	struct lfs_index index;
	uint8_t *records, *image;
	size_t image_size;

	tocs[0] = tocs[1] = scan_toc(json, size);
	if (!tocs[0])
		return;
	lfs_toc_facts(tocs[0], &facts);
	records = malloc(facts.chunk_count * LFS_RECORD_SIZE + 1);
	CHECK(records);
	(void)lfs_toc_table(tocs[0], size, records, &extent);
	free(records);
	image = write_index(tocs, 2, &image_size);
	if (image) {
		put_superblock(image, image_size, 2);
		CHECK(lfs_index_open(&index, image, image_size) == LFS_OK);
		exercise_index(&index);
		free(image);
	}
	lfs_toc_free(tocs[0]);
}
