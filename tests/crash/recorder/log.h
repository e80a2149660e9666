/* The log, and the lock under which it is written. */
#ifndef LAZYFS_CRASH_LOG_H
#define LAZYFS_CRASH_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The program's own functions may have these names. */
#pragma GCC visibility push(hidden)

enum kind {
	MKDIR = 1, CREATE, WRITE, TRUNCATE, PUNCH, ALLOCATE, RENAME, LINK, UNLINK, SYMLINK,
	FSYNC, FDATASYNC, SYNC, MAPPED, MARK, EXCHANGE,
};

struct record {
	enum kind kind;
	uint64_t object, folder, other;
	int64_t offset, size;
	const char *name, *other_name;
	const void *data;
	size_t data_size;
};

/* What the environment says. */
extern const char *root, *boot_id;
extern size_t root_size;
extern dev_t root_device; /* what is mounted below the folder is another disk */

/* Is anything recorded at all? */
bool is_recording(void);

/* The kernel's open(), which nobody records. */
int raw_open(int folder, const char *path, int flags);

void take_lock(void);
void let_go(void);

/* Add to the log, under the lock. */
void write_down(const struct record *record);

#pragma GCC visibility pop

#endif /* LAZYFS_CRASH_LOG_H */
