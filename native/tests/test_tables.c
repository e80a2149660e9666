/* SPDX-License-Identifier: Apache-2.0 */
/* Which records hold which bytes; a byte in no record is an error. */
#include "support.h"

static void check_whole(void)
{
	/* Gaps are the padding between files */
	static const uint64_t records[][2] = {
		{0, 100}, {100, 50}, {4096, 4096}, {8192, 10}};
	static const struct {
		uint64_t start, end, first, last;
	} good[] =
		{
			{0, 1, 0, 1},	    {0, 100, 0, 1},
			{99, 101, 0, 2},    {100, 150, 1, 2},
			{0, 150, 0, 2},	    {4096, 8202, 2, 4},
			{8191, 8193, 2, 4}, {8192, 8202, 3, 4},
		},
	  bad[] = {
		  {0, 151, 0, 0},     {150, 151, 0, 0}, {4095, 4097, 0, 0},
		  {8202, 8203, 0, 0}, {0, 8192, 0, 0},	{7, 7, 0, 0},
		  {9, 3, 0, 0},
	  };
	uint8_t bytes[TABLE_SIZE(4)];
	struct lfs_table table;
	uint64_t first, last;
	unsigned i;

	make_table(bytes, 12288, records, 4);
	CHECK(lfs_table_open(&table, bytes, sizeof(bytes)) == LFS_OK);
	for (i = 0; i < sizeof(good) / sizeof(*good); i++) {
		CHECK(lfs_table_covering(&table, good[i].start, good[i].end,
					 &first, &last) == LFS_OK);
		CHECK(first == good[i].first && last == good[i].last);
	}
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(lfs_table_covering(&table, bad[i].start, bad[i].end,
					 &first, &last) == LFS_CORRUPT);
}

static void check_devices(void)
{
	/* As a device: any range, whatever lies in the gaps */
	static const uint64_t records[][2] = {
		{0, 100}, {100, 50}, {4096, 4096}, {8192, 10}};
	static const struct {
		uint64_t start, end, first, last;
	} ranges[] = {
		{0, 1, 0, 1},	    {0, 4096, 0, 2},	{150, 4096, 2, 2},
		{149, 4097, 1, 3},  {4096, 12288, 2, 4}, {8202, 12288, 4, 4},
		{8201, 12288, 3, 4}, {0, 12288, 0, 4},
	};
	uint8_t bytes[TABLE_SIZE(4)];
	struct lfs_table table;
	uint64_t first, last, start, end;
	unsigned i;

	make_table(bytes, 12288, records, 4);
	CHECK(lfs_table_open(&table, bytes, sizeof(bytes)) == LFS_OK);
	for (i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
		lfs_table_overlapping(&table, ranges[i].start, ranges[i].end,
				      &first, &last);
		CHECK(first == ranges[i].first && last == ranges[i].last);
	}
	lfs_table_record(&table, 2, &start, &end);
	CHECK(start == 4096 && end == 8192);
}

static void check_odd(void)
{
	/* Of no size, not sorted, beyond all bounds */
	static const uint64_t odd[][2] = {
		{0, 0}, {0, 10}, {5, UINT64_MAX}, {UINT64_MAX, 2}};
	uint8_t bytes[TABLE_SIZE(4)];
	struct lfs_table table;
	uint64_t first, last;

	make_table(bytes, 4096, odd, 4);
	CHECK(lfs_table_open(&table, bytes, sizeof(bytes)) == LFS_OK);
	CHECK(lfs_table_covering(&table, 5, 20, &first, &last) == LFS_CORRUPT);
	exercise_table(&table);
	make_table(bytes, 4096, odd, 0);
	CHECK(lfs_table_open(&table, bytes, TABLE_SIZE(0)) == LFS_OK);
	CHECK(lfs_table_covering(&table, 0, 1, &first, &last) == LFS_CORRUPT);
	make_table(bytes, UINT64_MAX, odd, 4);
	CHECK(lfs_table_open(&table, bytes, sizeof(bytes)) == LFS_CORRUPT);
}

static void check_provenance(void)
{
	static struct made made;
	struct lfs_provenance provenance;
	struct lfs_origin origin;

	make_image(&made);
	CHECK(lfs_provenance_open(&provenance, made.provenance,
				  PROVENANCE_SIZE) == LFS_OK);
	CHECK(lfs_provenance_of(&provenance, made.big, &origin) == LFS_OK);
	CHECK(origin.layer == 0 && origin.digest && origin.digest[0] == 0xAB);
	CHECK(lfs_provenance_of(&provenance, made.file, &origin) == LFS_OK);
	CHECK(origin.layer == 1 && !origin.digest);
	CHECK(lfs_provenance_of(&provenance, made.dir, &origin) == LFS_ABSENT);
	CHECK(lfs_provenance_of(&provenance, 0, &origin) == LFS_ABSENT);
	/* A nid whose low 32 bits are those of a record */
	CHECK(lfs_provenance_of(&provenance, made.big | (uint64_t)1 << 32,
				&origin) == LFS_ABSENT);
}

int main(void)
{
	check_whole();
	check_devices();
	check_odd();
	check_provenance();
	return 0;
}
