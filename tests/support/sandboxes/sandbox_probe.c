/* What a hostile program tries from within a sandbox.  Prints one line an attempt: NAME RESULT,
 * where RESULT is "ok", the name of an errno, or what was read.
 *
 *	sandbox_probe all MAJOR MINOR KEY PID	all that ends by itself
 *	sandbox_probe euid			who it is: run as a setuid program
 *	sandbox_probe wait			does nothing for ever
 *	sandbox_probe open PATH			opens a file for reading
 *	sandbox_probe open-write PATH		opens it for writing, too
 *	sandbox_probe flood-log BYTES		writes so much to standard output
 *	sandbox_probe flood-file PATH BYTES	writes a file until it cannot
 *	sandbox_probe flood-pids N		forks, up to N at a time
 *	sandbox_probe flood-memory BYTES	touches that much memory
 *
 * Linked statically: it is the only program of its image.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void say(const char *name, long result)
{
	printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "ok");
	fflush(stdout);
}

static void say_text(const char *name, const char *text)
{
	printf("%s %s\n", name, text);
	fflush(stdout);
}

/* Opens, and closes: what a protection must stop at the open. */
static void try_open(const char *name, const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);

	say(name, fd);
	if (fd >= 0)
		close(fd);
}

static void try_read(const char *name, const char *path)
{
	char data[64];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	long got = fd < 0 ? -1 : read(fd, data, sizeof(data));

	if (got == 0)
		say_text(name, "empty");
	else
		say(name, got);
	if (fd >= 0)
		close(fd);
}

static void status_lines(void)
{
	char line[256];
	FILE *file = fopen("/proc/self/status", "r");

	while (file && fgets(line, sizeof(line), file)) {
		char name[32], value[32];

		if (sscanf(line, "%31[^:]: %31s", name, value) == 2 &&
		    (!strncmp(name, "Cap", 3) || !strcmp(name, "NoNewPrivs") ||
		     !strcmp(name, "Seccomp")))
			say_text(name, value);
	}
	if (file)
		fclose(file);
}

static void devices(unsigned int disk_major, unsigned int disk_minor)
{
	static const char *const made[][2] = {
		{ "mknod-root", "/tmp/made" },
		{ "mknod-dev", "/dev/made" },
		{ "mknod-shm", "/dev/shm/made" },
	};

	try_open("image-disk", "/nodes/disk", O_RDONLY);
	try_open("image-disk-write", "/nodes/disk", O_RDWR);
	try_open("image-zero", "/nodes/zero", O_RDWR);
	if (link("/nodes/zero", "/tmp/linked") == 0)
		try_open("image-zero-linked", "/tmp/linked", O_RDWR);
	else
		say("image-zero-linked", -1);
	if (rename("/nodes/moved", "/tmp/moved") == 0)
		try_open("image-zero-moved", "/tmp/moved", O_RDWR);
	else
		say("image-zero-moved", -1);
	for (size_t i = 0; i < sizeof(made) / sizeof(*made); i++) {
		if (mknod(made[i][1], S_IFBLK | 0600, makedev(disk_major, disk_minor)) < 0) {
			say(made[i][0], -1);
			continue;
		}
		try_open(made[i][0], made[i][1], O_RDONLY);
		unlink(made[i][1]);
	}
}

static void keys(long key)
{
	char data[64];

	say("keyctl-read", syscall(SYS_keyctl, 11, key, data, sizeof(data), 0));
	say("keyctl-search-session", syscall(SYS_keyctl, 10, -3, "user", "lazyfs-secret", 0));
	/* KEYCTL_LINK the user keyring into the session, then read: needs no possession at first. */
	say("keyctl-link", syscall(SYS_keyctl, 8, -4, -3, 0, 0));
	say("keyctl-read-linked", syscall(SYS_keyctl, 11, key, data, sizeof(data), 0));
	say("keyctl-search-user", syscall(SYS_keyctl, 10, -4, "user", "lazyfs-secret", 0));
	say("request-key", syscall(SYS_request_key, "user", "lazyfs-secret", 0, 0));
	say("add-key", syscall(SYS_add_key, "user", "mine", "x", 1, -3));
}

static int full(void *unused)
{
	(void)unused;
	return 0;
}

static void namespaces(void)
{
	static char stack[65536];
	struct {
		unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, size, tls;
	} arguments = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
	pid_t child = fork();
	long made;

	if (child == 0) {
		long result = unshare(CLONE_NEWUSER | CLONE_NEWNS);

		say("unshare", result);
		if (result == 0) {
			say("unshare-mount", mount("none", "/tmp", "tmpfs", 0, ""));
			status_lines();
		}
		_exit(0);
	}
	waitpid(child, NULL, 0);
	made = clone(full, stack + sizeof(stack), CLONE_NEWUSER | SIGCHLD, NULL);
	say("clone", made);
	if (made > 0)
		waitpid((pid_t)made, NULL, __WALL);
	made = syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (made == 0)
		_exit(0);
	say("clone3", made);
	if (made > 0)
		waitpid((pid_t)made, NULL, __WALL);
}

static void setuid_program(void)
{
	pid_t child = fork();

	if (child == 0) {
		if (setgid(1000) < 0 || setuid(1000) < 0) {
			say("setuid", -1);
			_exit(0);
		}
		execl("/suid/probe", "probe", "euid", NULL);
		say("setuid", -1);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void terminal(void)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY), fd;
	pid_t child;

	if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0) {
		say("tiocsti", -1);
		return;
	}
	child = fork();
	if (child == 0) {
		setsid();
		fd = open(ptsname(master), O_RDWR);
		ioctl(fd, TIOCSCTTY, 0);
		say("tiocsti", ioctl(fd, TIOCSTI, "x"));
		/* The kernel looks at 32 bits of the number: so must who forbids it. */
		say("tiocsti-high", syscall(SYS_ioctl, fd, 0x100000000UL | TIOCSTI, "x"));
		say("tcgets", tcgetattr(fd, &(struct termios){ 0 }));
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void calls(void)
{
	char handle[64] = { 0 };

	say("bpf", syscall(SYS_bpf, 0, handle, 0));
	say("perf-event-open", syscall(SYS_perf_event_open, handle, 0, -1, -1, 0));
	say("kexec-load", syscall(SYS_kexec_load, 0, 0, 0, 0));
	say("userfaultfd", syscall(SYS_userfaultfd, 1));
	say("io-uring-setup", syscall(425, 0, handle));
	say("open-by-handle-at", syscall(SYS_open_by_handle_at, AT_FDCWD, handle, O_RDONLY));
	say("init-module", syscall(SYS_init_module, handle, sizeof(handle), ""));
	say("mount", mount("none", "/tmp", "tmpfs", 0, ""));
	say("mount-remount", mount("none", "/", NULL, MS_REMOUNT | MS_BIND, ""));
	say("umount", umount2("/proc", MNT_DETACH));
	say("move-mount", syscall(429, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0));
	say("personality", syscall(SYS_personality, 0x0400000)); /* ADDR_NO_RANDOMIZE, and no other */
	syscall(SYS_personality, 0);
	say("acct", syscall(SYS_acct, "/tmp/none"));
	say("quotactl", syscall(SYS_quotactl, 0, NULL, 0, NULL));
	say("swapon", syscall(SYS_swapon, "/none", 0));
	say("setns", syscall(SYS_setns, -1, 0));
	say("syslog", syscall(SYS_syslog, 10, NULL, 0));
	say("unknown-call", syscall(5000));
}

static void paths(void)
{
	static const char *const written[][2] = {
		{ "proc-sys", "/proc/sys/vm/drop_caches" },
		{ "proc-sys-kernel", "/proc/sys/kernel/core_pattern" },
		{ "sysrq", "/proc/sysrq-trigger" },
		{ "sys", "/sys/kernel/uevent_helper" },
		{ "sys-power", "/sys/power/state" },
		{ "sys-module", "/sys/module/printk/parameters/time" },
	};

	for (size_t i = 0; i < sizeof(written) / sizeof(*written); i++)
		try_open(written[i][0], written[i][1], O_WRONLY);
	say("sys-mkdir", mkdir("/sys/fs/cgroup/made", 0700));
	try_read("kcore", "/proc/kcore");
	try_read("keys", "/proc/keys");
	try_read("timer-list", "/proc/timer_list");
	try_read("firmware", "/sys/firmware/acpi/tables/DSDT");
	try_open("write-root", "/tmp/new", O_WRONLY | O_CREAT);
}

static void flood_file(const char *path, long long size)
{
	static char data[1 << 16];
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	long long written = 0;
	long got = fd < 0 ? -1 : 0;

	memset(data, 'x', sizeof(data));
	while (got >= 0 && written < size) {
		got = write(fd, data, sizeof(data));
		written += got > 0 ? got : 0;
	}
	say("flood-file", got);
	printf("written %lld\n", written);
	unlink(path);
}

static void flood_pids(int count)
{
	int made = 0;
	long got = 0;

	while (made < count) {
		got = fork();
		if (got == 0) {
			pause();
			_exit(0);
		}
		if (got < 0)
			break;
		made++;
	}
	say("flood-pids", got);
	printf("made %d\n", made);
	fflush(stdout);
	kill(0, SIGKILL);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "euid")) {
		printf("setuid %d\n", (int)geteuid());
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "flood-log")) {
		static char line[4096];

		memset(line, 'y', sizeof(line));
		line[sizeof(line) - 1] = '\n';
		for (long long left = atoll(argv[2]); left > 0; left -= (long long)sizeof(line))
			if (write(1, line, sizeof(line)) < 0)
				return 1;
		write(1, "the end\n", 8);
		pause();
	}
	if (argc > 1 && !strcmp(argv[1], "wait"))
		pause();
	if (argc > 2 && !strcmp(argv[1], "open"))
		try_open("open", argv[2], O_RDONLY);
	if (argc > 2 && !strcmp(argv[1], "open-write"))
		try_open("open", argv[2], O_RDWR);
	if (argc > 3 && !strcmp(argv[1], "flood-file"))
		flood_file(argv[2], atoll(argv[3]));
	if (argc > 2 && !strcmp(argv[1], "flood-pids"))
		flood_pids(atoi(argv[2]));
	if (argc > 2 && !strcmp(argv[1], "flood-memory")) {
		size_t size = (size_t)atoll(argv[2]);
		char *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(data, 1, size);
		say("flood-memory", 0);
	}
	if (argc > 5 && !strcmp(argv[1], "all")) {
		status_lines();
		devices((unsigned)atoi(argv[2]), (unsigned)atoi(argv[3]));
		keys(atol(argv[4]));
		say("signal-host", kill(atoi(argv[5]), 0));
		say("ptrace-host", ptrace(PTRACE_ATTACH, atoi(argv[5]), 0, 0));
		paths();
		setuid_program();
		terminal();
		calls();
		namespaces();
		say_text("end", "reached");
	}
	return 0;
}
