/* Writes down what a program changes below some folders: a library for LD_PRELOAD.
 *
 * Each change is made and written down under one lock that all processes share, so that the log has
 * them in their order.  A page of a shared map changes without a call; so all maps are compared with
 * what they were before each change is written down, and once more when they end.
 *
 * What calls the kernel by other ways than the C library's functions is not seen; recording.py
 * compares the tree that the log makes with the real one, and finds that.
 *
 *   log.c     the log, its lock, what the environment says
 *   paths.c   what is recorded
 *   maps.c    shared maps
 *   files.c   opening, writing, sizes
 *   names.c   folders and names
 *   disk.c    bringing to the disk, and the end
 *
 * Environment: LAZYFS_CRASH_LOG and LAZYFS_CRASH_LOCK name files, LAZYFS_CRASH_ROOT the folder,
 * LAZYFS_CRASH_BOOT_ID a file that is read in place of the kernel's.
 *
 * A record, little-endian: u32 length of what follows; u8 kind; u64 object, folder, other folder
 * (inode numbers); i64 offset, size; u32 lengths of name, other name, data; and these.
 */
#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define PATIENCE 40000 /* turns of 50 us until a holder of the lock is looked at */

static const char *log_path;
const char *root, *boot_id;
size_t root_size;
dev_t root_device;
static _Atomic int *lock_word;

bool is_recording(void)
{
	return lock_word;
}

int raw_open(int folder, const char *path, int flags)
{
	return (int)syscall(SYS_openat, folder, path, flags | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void begin(void)
{
	const char *lock_path = getenv("LAZYFS_CRASH_LOCK");
	int fd;

	log_path = getenv("LAZYFS_CRASH_LOG");
	root = getenv("LAZYFS_CRASH_ROOT");
	boot_id = getenv("LAZYFS_CRASH_BOOT_ID");
	if (!log_path || !root || !lock_path)
		return;
	struct stat status;
	if (syscall(SYS_newfstatat, AT_FDCWD, root, &status, 0))
		return;
	root_device = status.st_dev;
	root_size = strlen(root);
	fd = raw_open(AT_FDCWD, lock_path, O_RDWR);
	if (fd < 0)
		return;
	void *word = (void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	syscall(SYS_close, fd);
	if (word != MAP_FAILED)
		lock_word = word;
}

void take_lock(void)
{
	int self = (int)syscall(SYS_gettid), holder = 0;

	for (int turns = 0; !atomic_compare_exchange_strong(lock_word, &holder, self); turns++) {
		if (turns > PATIENCE && syscall(SYS_kill, holder, 0) && errno == ESRCH) {
			int gone = holder;
			if (atomic_compare_exchange_strong(lock_word, &gone, self))
				return;
		}
		usleep(50);
		holder = 0;
	}
}

void let_go(void)
{
	atomic_store(lock_word, 0);
}

void write_down(const struct record *record)
{
	size_t name_size = record->name ? strlen(record->name) : 0;
	size_t other_size = record->other_name ? strlen(record->other_name) : 0;
	char head[1 + 3 * 8 + 2 * 8 + 3 * 4];
	uint32_t sizes[3] = {(uint32_t)name_size, (uint32_t)other_size, (uint32_t)record->data_size};
	uint32_t size = (uint32_t)(sizeof(head) + name_size + other_size + record->data_size);
	struct iovec parts[5] = {
		{&size, 4},
		{head, sizeof(head)},
		{(void *)record->name, name_size},
		{(void *)record->other_name, other_size},
		{(void *)record->data, record->data_size},
	};
	int fd;

	head[0] = (char)record->kind;
	memcpy(head + 1, &record->object, 8);
	memcpy(head + 9, &record->folder, 8);
	memcpy(head + 17, &record->other, 8);
	memcpy(head + 25, &record->offset, 8);
	memcpy(head + 33, &record->size, 8);
	memcpy(head + 41, sizes, 12);
	/* Opened each time: programs close descriptors that they do not know. */
	fd = raw_open(AT_FDCWD, log_path, O_WRONLY | O_APPEND);
	if (fd < 0 || syscall(SYS_writev, fd, parts, 5) != (long)(4 + (size_t)size))
		abort();
	syscall(SYS_close, fd);
}
