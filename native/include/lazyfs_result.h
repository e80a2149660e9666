/* SPDX-License-Identifier: Apache-2.0 */
/* How a call of the core ends. */
#ifndef LAZYFS_RESULT_H
#define LAZYFS_RESULT_H

#ifdef __cplusplus
extern "C" {
#endif

enum lfs_result {
	LFS_OK = 0,
	LFS_ABSENT,	/* no such name, record, attribute or request */
	LFS_CORRUPT,	/* the bytes contradict themselves, or end too early */
	LFS_WRONG_KIND, /* this kind of inode has nothing of that kind */
	LFS_UNUSUAL,	/* right or wrong: for the Python twin to say */
};

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_RESULT_H */
