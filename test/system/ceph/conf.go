package ceph

// configuration is that of every cluster; start fills the words in capitals in.
// Small numbers of placement groups, threads and copies are what makes it come
// up within seconds.
const configuration = `[global]
fsid = FSID
mon initial members = a
mon host = ADDRESS
ms bind ipv4 = true
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = DIR/keyring
run dir = DIR
admin socket =
log file = DIR/$name.log
pid file =
crash dir = DIR
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data avail warn = 2
mon data avail crit = 1
mon osd full ratio = .97
auth allow insecure global id reclaim = false
[mon]
mon data = DIR/mon
mon cluster log file = DIR/cluster.log
mon warn on pool no redundancy = false
[mgr]
mgr data = DIR/mgr
mgr initial modules =
mgr stats period = 1
mgr tick period = 1
[osd]
osd data = DIR/osd
osd objectstore = memstore
osd class load list = *
osd op num shards = 2
osd mgr stats report interval = 1
memstore device bytes = SIZE
[client]
log file =
log to stderr = false
err to stderr = true
`
