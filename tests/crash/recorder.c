/* Writes down what a program changes below some folders: a library for LD_PRELOAD.
 *
 * Each change is made and written down under one lock that all processes share, so that the log has
 * them in their order.  A page of a shared map changes without a call; so all maps are compared with
 * what they were before each change is written down, and once more when they end.
 *
 * What calls the kernel by other ways than the C library's functions is not seen; recording.py
 * compares the tree that the log makes with the real one, and finds that.
 *
 * Environment: LAZYFS_CRASH_LOG and LAZYFS_CRASH_LOCK name files, LAZYFS_CRASH_ROOT the folder,
 * LAZYFS_CRASH_BOOT_ID a file that is read in place of the kernel's.
 *
 * A record, little-endian: u32 length of what follows; u8 kind; u64 object, folder, other folder
 * (inode numbers); i64 offset, size; u32 lengths of name, other name, data; and these.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
	MKDIR = 1, CREATE, WRITE, TRUNCATE, PUNCH, ALLOCATE, RENAME, LINK, UNLINK, SYMLINK,
	FSYNC, FDATASYNC, SYNC, MAPPED, MARK, EXCHANGE,
};

#define PAGE 4096
#define MAPS 512
#define PATIENCE 40000 /* turns of 50 us until a holder of the lock is looked at */

static const char *log_path, *root, *boot_id;
static size_t root_size;
static dev_t root_device; /* what is mounted below the folder is another disk */
static _Atomic int *lock_word;

struct map {
	char *start;
	size_t size;
	uint64_t object;
	int64_t offset;
	char *before;
};
static struct map maps[MAPS];

/* The C library's functions themselves. */

#define NEXT(name) ((__typeof__(&name))next(#name))

static void *next(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	if (!found)
		abort();
	return found;
}

static int raw_open(int folder, const char *path, int flags)
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

static void take_lock(void)
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

static void let_go(void)
{
	atomic_store(lock_word, 0);
}

/* The log. */

struct record {
	enum kind kind;
	uint64_t object, folder, other;
	int64_t offset, size;
	const char *name, *other_name;
	const void *data;
	size_t data_size;
};

static void write_down(const struct record *record)
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

static void look_at_map(struct map *map)
{
	char now[PAGE];

	for (size_t place = 0; place < map->size; place += PAGE) {
		size_t size = map->size - place < PAGE ? map->size - place : PAGE;
		struct iovec here = {now, size}, there = {map->start + place, size};

		/* What lies behind the file's end is a SIGBUS to whoever reads it, not to this call. */
		if (syscall(SYS_process_vm_readv, getpid(), &here, 1, &there, 1, 0) != (long)size)
			continue;
		if (!memcmp(now, map->before + place, size))
			continue;
		memcpy(map->before + place, now, size);
		write_down(&(struct record){
			.kind = MAPPED,
			.object = map->object,
			.offset = map->offset + (int64_t)place,
			.data = now,
			.data_size = size,
		});
	}
}

static void look_at_maps(void)
{
	for (int i = 0; i < MAPS; i++)
		if (maps[i].start)
			look_at_map(&maps[i]);
}

static bool is_below_root(const char *path)
{
	return !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}

/* Say whether a descriptor is of a file or folder that is recorded; its inode number. */
static bool is_recorded(int fd, uint64_t *object, mode_t *mode)
{
	char link[64], path[PATH_MAX];
	struct stat status;
	ssize_t size;

	if (!lock_word || fd < 0 || syscall(SYS_newfstatat, fd, "", &status, AT_EMPTY_PATH))
		return false;
	if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
		return false;
	if (status.st_dev != root_device)
		return false;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);
	if (size <= 0)
		return false;
	path[size] = 0;
	*object = status.st_ino;
	if (mode)
		*mode = status.st_mode;
	return is_below_root(path);
}

/* Split a path: say whether its folder is recorded; that one's number, and the last name. */
static bool is_recorded_path(int at, const char *path, uint64_t *folder, char *name)
{
	char above[PATH_MAX];
	size_t size;
	const char *slash;
	bool found;
	int fd;

	if (!lock_word || !path || !(size = strlen(path)) || size >= sizeof(above))
		return false;
	memcpy(above, path, size + 1);
	while (size > 1 && above[size - 1] == '/')
		above[--size] = 0;
	slash = strrchr(above, '/');
	if (strlen(slash ? slash + 1 : above) > NAME_MAX)
		return false;
	strcpy(name, slash ? slash + 1 : above);
	if (!slash)
		strcpy(above, ".");
	else if (slash == above)
		strcpy(above, "/");
	else
		above[slash - above] = 0;
	fd = raw_open(at, above, O_PATH | O_DIRECTORY);
	if (fd < 0)
		return false;
	found = is_recorded(fd, folder, NULL);
	syscall(SYS_close, fd);
	return found;
}

static uint64_t number_of(int at, const char *path, int64_t *size)
{
	struct stat status;

	if (syscall(SYS_newfstatat, at, path, &status, AT_SYMLINK_NOFOLLOW))
		return 0;
	if (size)
		*size = status.st_size;
	return status.st_ino;
}

#define WITHIN(result, call, ...)                     \
	do {                                          \
		int saved;                            \
		take_lock();                          \
		look_at_maps();                       \
		result = call;                        \
		saved = errno;                        \
		if (result != -1)                     \
			write_down(&(struct record){__VA_ARGS__}); \
		let_go();                             \
		errno = saved;                        \
	} while (0)

/* Opening. */

static int open_recorded(int at, const char *path, int flags, mode_t mode)
{
	char name[NAME_MAX + 1];
	uint64_t folder, object = 0, before = 0;
	int64_t size = 0;
	int fd, saved;
	bool is_anonymous = (flags & O_TMPFILE) == O_TMPFILE;

	if (boot_id && !strcmp(path, "/proc/sys/kernel/random/boot_id"))
		path = boot_id;
	if (!(flags & (O_CREAT | O_TRUNC)) && !is_anonymous)
		return (int)syscall(SYS_openat, at, path, flags, mode);
	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_openat, at, path, flags, mode);
	take_lock();
	look_at_maps();
	if (!is_anonymous)
		before = number_of(at, path, &size);
	fd = (int)syscall(SYS_openat, at, path, flags, mode);
	saved = errno;
	if (fd >= 0 && is_recorded(fd, &object, NULL)) {
		if (is_anonymous)
			write_down(&(struct record){.kind = CREATE, .object = object});
		else if (before != object)
			write_down(&(struct record){
				.kind = CREATE, .object = object, .folder = folder, .name = name});
		else if (flags & O_TRUNC && size)
			write_down(&(struct record){.kind = TRUNCATE, .object = object});
	}
	let_go();
	errno = saved;
	return fd;
}

#define OPENS(name)                                                              \
	int name(const char *path, int flags, ...)                               \
	{                                                                        \
		va_list more;                                                    \
		va_start(more, flags);                                           \
		mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
		va_end(more);                                                    \
		return open_recorded(AT_FDCWD, path, flags, mode);               \
	}
#define OPENS_AT(name)                                                           \
	int name(int at, const char *path, int flags, ...)                       \
	{                                                                        \
		va_list more;                                                    \
		va_start(more, flags);                                           \
		mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
		va_end(more);                                                    \
		return open_recorded(at, path, flags, mode);                     \
	}
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int __open_2(const char *path, int flags) { return open_recorded(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_recorded(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return open_recorded(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return open_recorded(at, path, flags, 0); }
int creat(const char *path, mode_t mode)
{
	return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode)
{
	return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Writing: what was written is read back, whoever's buffers it was in. */

static void write_down_range(int fd, uint64_t object, int64_t offset, size_t size)
{
	char link[64], *data = malloc(size ? size : 1);
	int reading;
	ssize_t got;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	reading = raw_open(AT_FDCWD, link, O_RDONLY);
	got = reading < 0 ? -1 : syscall(SYS_pread64, reading, data, size, offset);
	if (got != (ssize_t)size)
		abort();
	write_down(&(struct record){
		.kind = WRITE, .object = object, .offset = offset, .data = data, .data_size = size});
	syscall(SYS_close, reading);
	free(data);
}

/* *offset* is -1 where the call has moved the descriptor's own. */
#define WRITES(fd, call, place)                                                             \
	do {                                                                                \
		uint64_t object;                                                            \
		ssize_t done;                                                               \
		int saved;                                                                  \
		if (!is_recorded(fd, &object, NULL))                                        \
			return call;                                                        \
		take_lock();                                                                \
		look_at_maps();                                                             \
		done = call;                                                                \
		saved = errno;                                                              \
		if (done > 0) {                                                             \
			int64_t first = (place);                                            \
			if (first < 0)                                                      \
				first = syscall(SYS_lseek, fd, 0, SEEK_CUR) - done;         \
			write_down_range(fd, object, first, (size_t)done);                  \
		}                                                                           \
		let_go();                                                                   \
		errno = saved;                                                              \
		return done;                                                                \
	} while (0)

ssize_t write(int fd, const void *data, size_t size)
{
	WRITES(fd, syscall(SYS_write, fd, data, size), -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
	WRITES(fd, syscall(SYS_pwrite64, fd, data, size, offset), offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	WRITES(fd, syscall(SYS_pwrite64, fd, data, size, offset), offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count)
{
	WRITES(fd, syscall(SYS_writev, fd, parts, count), -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	WRITES(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
	WRITES(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
	WRITES(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
	WRITES(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), offset);
}
ssize_t sendfile(int fd, int source, off_t *from, size_t size)
{
	WRITES(fd, syscall(SYS_sendfile, fd, source, from, size), -1);
}
ssize_t sendfile64(int fd, int source, off64_t *from, size_t size)
{
	WRITES(fd, syscall(SYS_sendfile, fd, source, from, size), -1);
}
ssize_t copy_file_range(
	int source, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags)
{
	int64_t start = to ? *to : -1;

	WRITES(fd, syscall(SYS_copy_file_range, source, from, fd, to, size, flags), start);
}

/* Cloning of whole files is refused: everybody has another way. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *argument;
	uint64_t object;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	if ((request == FICLONE || request == FICLONERANGE) && is_recorded(fd, &object, NULL)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return NEXT(ioctl)(fd, request, argument);
}

/* Sizes. */

static int truncate_recorded(int fd, off64_t size)
{
	uint64_t object;
	int result;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(SYS_ftruncate, fd, size);
	WITHIN(result, (int)syscall(SYS_ftruncate, fd, size),
	       .kind = TRUNCATE, .object = object, .size = size);
	return result;
}
int ftruncate(int fd, off_t size) { return truncate_recorded(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_recorded(fd, size); }

static int truncate_path(const char *path, off64_t size)
{
	int fd = raw_open(AT_FDCWD, path, O_WRONLY), result, saved;

	if (fd < 0)
		return -1;
	result = truncate_recorded(fd, size);
	saved = errno;
	syscall(SYS_close, fd);
	errno = saved;
	return result;
}
int truncate(const char *path, off_t size) { return truncate_path(path, size); }
int truncate64(const char *path, off64_t size) { return truncate_path(path, size); }

static int allocate_recorded(int fd, int mode, off64_t offset, off64_t size)
{
	uint64_t object;
	int result;
	enum kind kind = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? PUNCH : ALLOCATE;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(SYS_fallocate, fd, mode, offset, size);
	if (mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
		abort(); /* the rest moves data */
	if (mode & FALLOC_FL_KEEP_SIZE && kind == ALLOCATE)
		return (int)syscall(SYS_fallocate, fd, mode, offset, size);
	WITHIN(result, (int)syscall(SYS_fallocate, fd, mode, offset, size),
	       .kind = kind, .object = object, .offset = offset, .size = size);
	return result;
}
int fallocate(int fd, int mode, off_t offset, off_t size)
{
	return allocate_recorded(fd, mode, offset, size);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
	return allocate_recorded(fd, mode, offset, size);
}
int posix_fallocate(int fd, off_t offset, off_t size)
{
	return allocate_recorded(fd, 0, offset, size) ? errno : 0;
}
int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
	return allocate_recorded(fd, 0, offset, size) ? errno : 0;
}

/* Names. */

static int make_folder(int at, const char *path, mode_t mode)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_mkdirat, at, path, mode);
	WITHIN(result, (int)syscall(SYS_mkdirat, at, path, mode), .kind = MKDIR, .folder = folder,
	       .name = name, .object = number_of(at, path, NULL));
	return result;
}
int mkdir(const char *path, mode_t mode) { return make_folder(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return make_folder(at, path, mode); }

static int unlink_recorded(int at, const char *path, int flags)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_unlinkat, at, path, flags);
	WITHIN(result, (int)syscall(SYS_unlinkat, at, path, flags), .kind = UNLINK, .folder = folder,
	       .name = name);
	return result;
}
int unlink(const char *path) { return unlink_recorded(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlink_recorded(at, path, flags); }
int rmdir(const char *path) { return unlink_recorded(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path)
{
	int result = unlink_recorded(AT_FDCWD, path, 0);

	return result && errno == EISDIR ? unlink_recorded(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

static int rename_recorded(int at, const char *path, int to_at, const char *to, unsigned flags)
{
	char name[NAME_MAX + 1], to_name[NAME_MAX + 1];
	uint64_t folder = 0, to_folder = 0;
	bool is_from = is_recorded_path(at, path, &folder, name);
	bool is_to = is_recorded_path(to_at, to, &to_folder, to_name);
	int result;

	if (!is_from && !is_to)
		return (int)syscall(SYS_renameat2, at, path, to_at, to, flags);
	if (is_from != is_to)
		abort(); /* it came from where nothing is recorded */
	WITHIN(result, (int)syscall(SYS_renameat2, at, path, to_at, to, flags),
	       .kind = flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, .folder = folder, .name = name,
	       .other = to_folder, .other_name = to_name, .object = number_of(to_at, to, NULL));
	return result;
}
int rename(const char *path, const char *to)
{
	return rename_recorded(AT_FDCWD, path, AT_FDCWD, to, 0);
}
int renameat(int at, const char *path, int to_at, const char *to)
{
	return rename_recorded(at, path, to_at, to, 0);
}
int renameat2(int at, const char *path, int to_at, const char *to, unsigned flags)
{
	return rename_recorded(at, path, to_at, to, flags);
}

static int link_recorded(int at, const char *path, int to_at, const char *to, int flags)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(to_at, to, &folder, name))
		return (int)syscall(SYS_linkat, at, path, to_at, to, flags);
	WITHIN(result, (int)syscall(SYS_linkat, at, path, to_at, to, flags), .kind = LINK,
	       .folder = folder, .name = name, .object = number_of(to_at, to, NULL));
	return result;
}
int link(const char *path, const char *to)
{
	return link_recorded(AT_FDCWD, path, AT_FDCWD, to, 0);
}
int linkat(int at, const char *path, int to_at, const char *to, int flags)
{
	return link_recorded(at, path, to_at, to, flags);
}

static int symlink_recorded(const char *target, int at, const char *path)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_symlinkat, target, at, path);
	WITHIN(result, (int)syscall(SYS_symlinkat, target, at, path), .kind = SYMLINK,
	       .folder = folder, .name = name, .object = number_of(at, path, NULL), .data = target,
	       .data_size = strlen(target));
	return result;
}
int symlink(const char *target, const char *path)
{
	return symlink_recorded(target, AT_FDCWD, path);
}
int symlinkat(const char *target, int at, const char *path)
{
	return symlink_recorded(target, at, path);
}

/* Bringing to the disk. */

static int sync_recorded(int fd, long call, enum kind kind)
{
	uint64_t object;
	int result;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(call, fd);
	WITHIN(result, (int)syscall(call, fd), .kind = kind, .object = object);
	return result;
}
int fsync(int fd) { return sync_recorded(fd, SYS_fsync, FSYNC); }
int fdatasync(int fd) { return sync_recorded(fd, SYS_fdatasync, FDATASYNC); }
int syncfs(int fd) { return sync_recorded(fd, SYS_syncfs, SYNC); }

int msync(void *start, size_t size, int flags)
{
	int result = 0, saved;

	if (!lock_word)
		return (int)syscall(SYS_msync, start, size, flags);
	take_lock();
	look_at_maps();
	result = (int)syscall(SYS_msync, start, size, flags);
	saved = errno;
	for (int i = 0; !result && flags & MS_SYNC && i < MAPS; i++)
		if (maps[i].start == (char *)start && maps[i].size <= size)
			write_down(&(struct record){.kind = FDATASYNC, .object = maps[i].object});
	let_go();
	errno = saved;
	return result;
}

/* Maps. */

static void *map_recorded(
	void *start, size_t size, int protection, int flags, int fd, off64_t offset)
{
	uint64_t object;
	void *found;
	int i, saved;

	if (!(flags & MAP_SHARED) || !(protection & PROT_WRITE) || !is_recorded(fd, &object, NULL))
		return (void *)syscall(SYS_mmap, start, size, protection, flags, fd, offset);
	take_lock();
	look_at_maps();
	found = (void *)syscall(SYS_mmap, start, size, protection, flags, fd, offset);
	saved = errno;
	if (found != MAP_FAILED) {
		for (i = 0; i < MAPS && maps[i].start; i++)
			;
		if (i == MAPS)
			abort();
		maps[i] = (struct map){
			.size = size, .object = object, .offset = offset, .before = malloc(size)};
		memcpy(maps[i].before, found, size);
		maps[i].start = found;
	}
	let_go();
	errno = saved;
	return found;
}
void *mmap(void *start, size_t size, int protection, int flags, int fd, off_t offset)
{
	return map_recorded(start, size, protection, flags, fd, offset);
}
void *mmap64(void *start, size_t size, int protection, int flags, int fd, off64_t offset)
{
	return map_recorded(start, size, protection, flags, fd, offset);
}

int munmap(void *start, size_t size)
{
	bool is_known = false;
	int result, saved;

	for (int i = 0; lock_word && i < MAPS; i++)
		is_known |= maps[i].start && maps[i].start == (char *)start;
	if (!is_known)
		return (int)syscall(SYS_munmap, start, size);
	take_lock();
	look_at_maps();
	result = (int)syscall(SYS_munmap, start, size);
	saved = errno;
	for (int i = 0; i < MAPS; i++)
		if (maps[i].start == (char *)start) {
			free(maps[i].before);
			maps[i].start = NULL;
		}
	let_go();
	errno = saved;
	return result;
}

static void end(void)
{
	if (!lock_word)
		return;
	take_lock();
	look_at_maps();
	let_go();
}
__attribute__((destructor)) static void end_of_program(void)
{
	end();
}
void _exit(int status)
{
	end();
	syscall(SYS_exit_group, status);
	__builtin_unreachable();
}

/* For workloads: write a line into the log, between what is written down. */
void crash_mark(const char *text)
{
	if (!lock_word)
		return;
	take_lock();
	look_at_maps();
	write_down(&(struct record){.kind = MARK, .data = text, .data_size = strlen(text)});
	let_go();
}
