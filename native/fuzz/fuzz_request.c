/* SPDX-License-Identifier: Apache-2.0 */
/* One request, straight to where requests are told apart; replies go nowhere.
 * The kernel is no attacker, but a new one may say what this code never saw. */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>

#include "serving/requests.h"
#include "serving/server_state.h"
#include "support.h"

static struct lfs_worker *open_worker(void)
{
	struct lfs_options options = {.threads = 1,
				      .max_waiting = 4,
				      .max_touches = 4,
				      .max_read = LFS_MAX_READ};
	static struct lfs_attribute attribute = {"user.lazyfs.health", NULL, 0};
	static struct made made;
	struct lfs_server *server;
	struct lfs_layer layers[2] = {{.content_fd = -1}, {.content_fd = -1}};
	struct lfs_image image = {.layers = layers,
				  .attributes = &attribute,
				  .attribute_count = 1};
	unsigned i;

	make_image(&made);
	made.states[0][1] = 0;
	for (i = 0; i < 2; i++) {
		CHECK(lfs_table_open(&layers[i].table, made.tables[i],
				     made.table_sizes[i]) == LFS_OK);
		layers[i].states = made.states[i];
		layers[i].states_size = 3;
	}
	layers[1].content_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	CHECK(lfs_index_open(&image.index, made.index, INDEX_SIZE) == LFS_OK);
	CHECK(lfs_provenance_open(&image.provenance, made.provenance,
				  PROVENANCE_SIZE) == LFS_OK);
	CHECK(lfs_server_create(&server, open("/dev/null", O_RDWR | O_CLOEXEC),
				&image, &options) == 0);
	return &server->workers[0];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct lfs_worker *worker;
	struct lfs_event events[4];
	uint8_t copy[4096];
	uint32_t whole;
	size_t count;

	if (!worker)
		worker = open_worker();
	if (size < 4 || size > sizeof(copy))
		return 0;
	memcpy(copy, data, size);
	whole = (uint32_t)size;
	memcpy(copy, &whole, 4); /* or nothing would get past the header */
	if (size >= 8) {
		copy[4] %= LFS_FUSE_OPCODES;
		memset(copy + 5, 0, 3);
	}
	lfs_dispatch(worker, copy, size);
	count = lfs_server_take(worker->server, events, 4);
	while (count--)
		lfs_server_answer_error(worker->server, events[count].id, 5);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	struct fuse_in_header header = {
		.opcode = FUSE_READ, .nodeid = 64, .unique = 2};
	struct fuse_read_in in = {.size = 4096};

	CHECK(max > sizeof(header) + sizeof(in));
	memcpy(data, &header, sizeof(header));
	memcpy(data + sizeof(header), &in, sizeof(in));
	return sizeof(header) + sizeof(in);
}
