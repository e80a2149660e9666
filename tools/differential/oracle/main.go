// SPDX-License-Identifier: Apache-2.0

// The oracle unpacks layers as containerd does, and says what came out.
//
// Standard input holds images one after the other: the number of layers (32 bits, big-endian),
// then each layer's size (64 bits) and its tar.  Standard output gets a line of JSON for each.
// The bottom layer is applied to a directory of its own, as to the bind mount that overlayfs'
// snapshotter gives; the others too, by the rules for an overlay's upper directory
// (core/diff/apply/apply_linux.go), and then all are mounted as one overlay.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Node is what a name stands for; byte strings, since names need not be UTF-8.
type Node struct {
	Path   []byte            `json:"path"`
	Mode   uint32            `json:"mode"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size"`
	Sec    int64             `json:"sec"`
	Nsec   int64             `json:"nsec"`
	Major  uint32            `json:"major"`
	Minor  uint32            `json:"minor"`
	Inode  uint64            `json:"inode"`
	Link   []byte            `json:"link"`
	Digest string            `json:"digest"`
	Xattrs map[string][]byte `json:"xattrs"`
}

// Answer is the tree of an image, or why there is none.
type Answer struct {
	Error string `json:"error"`
	Nodes []Node `json:"nodes"`
}

func main() {
	if err := log.SetLevel("panic"); err != nil {
		fail(err)
	}
	root, err := os.MkdirTemp(os.Args[1], "oracle-")
	if err != nil {
		fail(err)
	}
	defer os.RemoveAll(root)
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	for {
		layers, err := readImage(in)
		if err == io.EOF {
			return
		}
		if err != nil {
			fail(err)
		}
		answer, err := unpack(root, layers)
		if err != nil {
			fail(err)
		}
		line, err := json.Marshal(answer)
		if err != nil {
			fail(err)
		}
		out.Write(line)
		out.WriteByte('\n')
		if err := out.Flush(); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "oracle:", err)
	os.Exit(1)
}

func readImage(in io.Reader) ([][]byte, error) {
	var count uint32
	if err := binary.Read(in, binary.BigEndian, &count); err != nil {
		return nil, err
	}
	layers := make([][]byte, count)
	for i := range layers {
		var size uint64
		if err := binary.Read(in, binary.BigEndian, &size); err != nil {
			return nil, err
		}
		layers[i] = make([]byte, size)
		if _, err := io.ReadFull(in, layers[i]); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// unpack returns an error only where the machine is to blame, not the image.
func unpack(root string, layers [][]byte) (*Answer, error) {
	work, err := os.MkdirTemp(root, "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	var below []string // the top one first
	for i, layer := range layers {
		directory := filepath.Join(work, fmt.Sprint(i))
		if err := os.Mkdir(directory, 0o755); err != nil {
			return nil, err
		}
		var opts []archive.ApplyOpt
		if i > 0 {
			opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
			opts = append(opts, archive.WithParents(below))
		}
		reader := bytes.NewReader(layer)
		// Without Seek, as the reader of a compressed stream.
		stream := struct{ io.Reader }{reader}
		if _, err := archive.Apply(context.Background(), directory, stream, opts...); err != nil {
			return &Answer{Error: fmt.Sprintf("layer %d: %v", i, err)}, nil
		}
		below = append([]string{directory}, below...)
	}
	top := below[0]
	if len(below) > 1 {
		top = filepath.Join(work, "merged")
		if err := os.Mkdir(top, 0o755); err != nil {
			return nil, err
		}
		options := "lowerdir=" + strings.Join(below, ":")
		if err := unix.Mount("overlay", top, "overlay", unix.MS_RDONLY, options); err != nil {
			return nil, fmt.Errorf("mount overlay: %w", err)
		}
		defer unix.Unmount(top, unix.MNT_DETACH)
	}
	nodes, err := list(top)
	if err != nil {
		return nil, err
	}
	return &Answer{Nodes: nodes}, nil
}

func list(root string) ([]Node, error) {
	var nodes []Node
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if path == root {
			return nil // its attributes are the machine's, not the image's
		}
		node, err := describe(path)
		if os.IsNotExist(err) {
			return nil // a device 0:0 of the bottom layer, which an overlay lists and hides
		}
		if err != nil {
			return err
		}
		node.Path = []byte(path[len(root)+1:])
		nodes = append(nodes, node)
		return nil
	})
	return nodes, err
}

func describe(path string) (Node, error) {
	var node Node
	info, err := os.Lstat(path)
	if err != nil {
		return node, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	node = Node{
		Mode: stat.Mode, UID: stat.Uid, GID: stat.Gid, Size: stat.Size, Inode: stat.Ino,
		Sec: stat.Mtim.Sec, Nsec: stat.Mtim.Nsec,
		Major: unix.Major(stat.Rdev), Minor: unix.Minor(stat.Rdev),
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(path)
		if err != nil {
			return node, err
		}
		node.Link = []byte(link)
	case info.Mode().IsRegular():
		file, err := os.Open(path)
		if err != nil {
			return node, err
		}
		defer file.Close()
		hash := sha256.New()
		if _, err := io.Copy(hash, file); err != nil {
			return node, err
		}
		node.Digest = fmt.Sprintf("%x", hash.Sum(nil))
	}
	node.Xattrs, err = xattrs(path)
	return node, err
}

func xattrs(path string) (map[string][]byte, error) {
	names := make([]byte, 1<<16)
	size, err := unix.Llistxattr(path, names)
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, name := range strings.Split(string(names[:size]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		found[name] = value[:size]
	}
	return found, nil
}
