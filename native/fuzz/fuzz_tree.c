/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stacks of layers, merged and written by the core, read back by its reader, and
 * compared with a tree of plain paths.  The core must take exactly the layers
 * that it is said to take: what it leaves to its twin costs every mount time.
 *
 * LAZYFS_FUZZ_OUTPUT names a directory for the layers' JSON, NUMBER.LAYER.json:
 * tools/fuzz_tree.py gives them to others to judge.
 */
#include "fuzz.h"

#include "lazyfs_toc.h"
#include "support.h"
#include "tree/checks.h"
#include "tree/make_layers.h"
#include "tree/usual.h"

static struct made_layers made;

static void show(void)
{
	const char *folder = getenv("LAZYFS_FUZZ_OUTPUT");
	static unsigned number;
	char path[4096];
	FILE *file;
	size_t i;

	for (i = 0; folder && i < made.count; i++) {
		snprintf(path, sizeof(path), "%s/%06u.%zu.json", folder, number,
			 i);
		file = fopen(path, "w");
		CHECK(file);
		CHECK(fwrite(made.layers[i].json, 1, made.layers[i].json_size,
			     file) == made.layers[i].json_size);
		CHECK(fclose(file) == 0);
	}
	number++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct lfs_toc_limits limits = {
		.blob_size = 1 << 30,
		.ratio = 1032,
		.entries = 1000000,
		.path_size = 4095,
		.component_size = 255,
		.depth = 1024,
		.implied_size = 64 << 20,
		.link_size = 4095,
		.chunk_size = 1 << 28,
		.stream_size = 1 << 30,
		.device_size = (uint64_t)1 << 44,
		.block_size = 4096,
		.codec = 1,
	};
	struct lfs_toc *tocs[MAX_MADE_LAYERS] = {NULL};
	bool all_usual = true;
	uint8_t *json;
	size_t i;

	make_layers(&made, data, size);
	show();
	for (i = 0; i < made.count; i++) {
		const struct made_layer *layer = &made.layers[i];
		enum lfs_result result;
		bool usual = made_is_usual(layer);

		json = (uint8_t *)layer->json; /* read in place */
		result = lfs_toc_scan(&tocs[i], json, layer->json_size,
				      &limits);
		CHECK(result == (usual ? LFS_OK : LFS_UNUSUAL));
		if (usual)
			check_table(tocs[i], layer);
		all_usual = all_usual && usual;
	}
	if (all_usual)
		check_written(&made, tocs);
	for (i = 0; i < made.count; i++)
		lfs_toc_free(tocs[i]);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	size_t size;

	CHECK(max >= 1200);
	for (size = 0; size < 1200; size++)
		data[size] = (uint8_t)random_number();
	data[0] = 2;
	return size;
}
