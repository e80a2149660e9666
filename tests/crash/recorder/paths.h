/* What is recorded: files and folders below the root, on its disk. */
#ifndef LAZYFS_CRASH_PATHS_H
#define LAZYFS_CRASH_PATHS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The program's own functions may have these names. */
#pragma GCC visibility push(hidden)

/* Say whether a descriptor is of a file or folder that is recorded; its inode number. */
bool is_recorded(int fd, uint64_t *object, mode_t *mode);

/* Split a path: say whether its folder is recorded; that one's number, and the last name. */
bool is_recorded_path(int at, const char *path, uint64_t *folder, char *name);

/* The inode number, or 0; and the size of what is there. */
uint64_t number_of(int at, const char *path, int64_t *size);

#pragma GCC visibility pop

#endif /* LAZYFS_CRASH_PATHS_H */
