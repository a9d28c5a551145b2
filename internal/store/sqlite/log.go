package sqlite

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// SQLite syncs with fdatasync where its build was told that there is one. This
// build of it was not, and calls fsync, which writes the log's time of change
// too: on a file system with a journal that is a second flush of the device for
// every commit. So the log, and nothing else, gets a sync of its own here, by way
// of the interface that SQLite has for it (https://sqlite.org/vfs.html): a file
// system of another name that opens files as the usual one does.
//
// SQLite also writes the header and the page of every frame by themselves, two
// calls for each page of a transaction. Here what follows one another is kept and
// written with one call: before the sync of the commit, which fails if that does,
// and before anything else looks at the file. Nobody else may read a frame before
// the commit that it belongs to was synced.

// openFunc is xOpen of sqlite3_vfs, the others are methods of sqlite3_io_methods:
// xSync; xRead and xWrite; xTruncate; xFileSize; xClose.
type (
	openFunc     = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32
	syncFunc     = func(tls *libc.TLS, file uintptr, flags int32) int32
	transferFunc = func(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32
	truncateFunc = func(tls *libc.TLS, file uintptr, size int64) int32
	sizeFunc     = func(tls *libc.TLS, file, size uintptr) int32
	closeFunc    = func(tls *libc.TLS, file uintptr) int32
)

var (
	usual openFunc         // xOpen of the usual file system
	ours  lib.Tsqlite3_vfs // the usual one, but for its name and xOpen

	logOnce    sync.Once
	logUsual   lib.Tsqlite3_io_methods // those of a log that the usual one has opened
	logMethods lib.Tsqlite3_io_methods // the same, with ours in place of some

	keptMu sync.Mutex
	kept   = map[uintptr]*frames{} // by log
)

// frames is what is still to be written to a log, from offset at on.
type frames struct {
	at   int64
	data []byte
}

// maxKept bounds what is kept: the usual xWrite writes no more at once.
const maxKept = 1<<17 - 1

// logVFS returns the name of the file system that syncs logs with fdatasync,
// which it registers when it is called first.
var logVFS = sync.OnceValues(func() (string, error) {
	const name = "tarn"
	tls := libc.NewTLS()
	defer tls.Close()
	cname, err := libc.CString(name)
	if err != nil {
		return "", err
	}
	found := lib.Xsqlite3_vfs_find(tls, 0)
	if found == 0 {
		return "", errors.New("SQLite has no file system")
	}
	ours = *at[lib.Tsqlite3_vfs](found)
	usual = function[openFunc](ours.FxOpen)
	ours.FzName, ours.FpNext, ours.FxOpen = cname, 0, address(openFile)
	if rc := lib.Xsqlite3_vfs_register(tls, uintptr(unsafe.Pointer(&ours)), 0); rc != lib.SQLITE_OK {
		return "", fmt.Errorf("SQLite refuses a file system: result code %d", rc)
	}
	return name, nil
})

// openFile is xOpen.
func openFile(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32 {
	rc := usual(tls, vfs, name, file, flags, outFlags)
	if rc == lib.SQLITE_OK && flags&lib.SQLITE_OPEN_WAL != 0 {
		f := at[lib.Tsqlite3_file](file)
		logOnce.Do(func() {
			logUsual = *at[lib.Tsqlite3_io_methods](f.FpMethods)
			logMethods = logUsual
			logMethods.FxSync, logMethods.FxWrite, logMethods.FxRead = address(syncLog), address(writeLog), address(readLog)
			logMethods.FxTruncate, logMethods.FxFileSize, logMethods.FxClose = address(truncateLog), address(sizeLog), address(closeLog)
		})
		f.FpMethods = uintptr(unsafe.Pointer(&logMethods))
	}
	return rc
}

// syncLog is xSync of a log. The first sync of a new one is left to the usual
// xSync, which syncs the directory with it.
func syncLog(tls *libc.TLS, file uintptr, flags int32) int32 {
	if rc := writeKept(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	f := at[lib.TunixFile](file)
	if f.FctrlFlags&lib.UNIXFILE_DIRSYNC != 0 {
		return function[syncFunc](logUsual.FxSync)(tls, file, flags)
	}
	if unix.Fdatasync(int(f.Fh)) != nil {
		return lib.SQLITE_IOERR_FSYNC
	}
	return lib.SQLITE_OK
}

// writeLog is xWrite of a log.
func writeLog(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32 {
	k := keptOf(file)
	if offset != k.at+int64(len(k.data)) || len(k.data)+int(n) > maxKept {
		if rc := writeKept(tls, file); rc != lib.SQLITE_OK {
			return rc
		}
		k.at = offset
	}
	k.data = append(k.data, unsafe.Slice(at[byte](buffer), n)...)
	return lib.SQLITE_OK
}

// writeKept writes what is kept of a log. What could not be written is kept no
// longer: SQLite takes its transaction back.
func writeKept(tls *libc.TLS, file uintptr) int32 {
	k := keptOf(file)
	if len(k.data) == 0 {
		return lib.SQLITE_OK
	}
	data := k.data
	k.data = data[:0]
	rc := function[transferFunc](logUsual.FxWrite)(tls, file, uintptr(unsafe.Pointer(&data[0])), int32(len(data)), k.at)
	runtime.KeepAlive(data)
	return rc
}

// keptOf returns what is kept of a log, which one connection uses.
func keptOf(file uintptr) *frames {
	keptMu.Lock()
	defer keptMu.Unlock()
	k := kept[file]
	if k == nil {
		k = new(frames)
		kept[file] = k
	}
	return k
}

func readLog(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32 {
	if rc := writeKept(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return function[transferFunc](logUsual.FxRead)(tls, file, buffer, n, offset)
}

func truncateLog(tls *libc.TLS, file uintptr, size int64) int32 {
	if rc := writeKept(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return function[truncateFunc](logUsual.FxTruncate)(tls, file, size)
}

func sizeLog(tls *libc.TLS, file, size uintptr) int32 {
	if rc := writeKept(tls, file); rc != lib.SQLITE_OK {
		return rc
	}
	return function[sizeFunc](logUsual.FxFileSize)(tls, file, size)
}

// closeLog is xClose of a log. What is kept then is of no commit.
func closeLog(tls *libc.TLS, file uintptr) int32 {
	keptMu.Lock()
	delete(kept, file)
	keptMu.Unlock()
	return function[closeFunc](logUsual.FxClose)(tls, file)
}

// at returns what lies at an address of SQLite's, whose memory is not Go's.
func at[T any](address uintptr) *T {
	return *(**T)(unsafe.Pointer(&address))
}

// function returns the function that SQLite keeps as an address, and address the
// reverse, for functions that are no closures.
func function[F any](address uintptr) F {
	return *(*F)(unsafe.Pointer(&address))
}

func address[F any](f F) uintptr {
	return *(*uintptr)(unsafe.Pointer(&f))
}
