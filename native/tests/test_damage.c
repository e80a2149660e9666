/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever is flipped, every reader comes back, and soon. */
#include <string.h>
#include <unistd.h>

#include "support.h"

#define ROUNDS 1500

static void damage(uint8_t *bytes, size_t size)
{
	static const uint8_t nasty[] = {0, 1, 0x7F, 0x80, 0xFE, 0xFF};
	unsigned times = 1 + random_number() % 8;
	size_t place;

	while (times--) {
		place = random_number() % size;
		if (random_number() % 2)
			bytes[place] = nasty[random_number() % sizeof(nasty)];
		else
			bytes[place] ^= (uint8_t)(1u << random_number() % 8);
	}
}

int main(void)
{
	static struct made made;
	struct lfs_provenance provenance;
	struct lfs_index index;
	struct lfs_table table;
	uint8_t *copy;
	unsigned round;

	alarm(100); /* an endless loop is a failure */
	make_image(&made);
	for (round = 0; round < ROUNDS; round++) {
		copy = guarded_copy(made.index, INDEX_SIZE);
		/* Half of it among the inodes, where it hurts */
		if (round % 2)
			damage(copy + 1408, 1400);
		else
			damage(copy, INDEX_SIZE);
		if (lfs_index_open(&index, copy, INDEX_SIZE) == LFS_OK)
			exercise_index(&index);
		guarded_free(copy, INDEX_SIZE);

		copy = guarded_copy(made.tables[0], TABLE_SIZE(3));
		damage(copy, TABLE_SIZE(3));
		if (lfs_table_open(&table, copy, TABLE_SIZE(3)) == LFS_OK)
			exercise_table(&table);
		guarded_free(copy, TABLE_SIZE(3));

		copy = guarded_copy(made.provenance, PROVENANCE_SIZE);
		damage(copy, PROVENANCE_SIZE);
		if (lfs_provenance_open(&provenance, copy, PROVENANCE_SIZE) ==
		    LFS_OK)
			exercise_provenance(&provenance);
		guarded_free(copy, PROVENANCE_SIZE);
	}
	return 0;
}
