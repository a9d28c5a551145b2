package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// Create an instance with a root disk from an image, wait for it, and print
// where its disks are.
func Example() {
	ctx := context.Background()
	c := client.New(client.Search{Env: os.Getenv("TARN_SOCKET"), RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")})
	defer c.Close()
	out, err := c.InstanceCreate(ctx, api.Options{RequestID: "web1-2026", Wait: time.Minute}, api.InstanceCreate{
		Name:  "web1",
		Disks: []api.DiskSpec{{Role: "root", Image: "debian12", Size: 20 << 30}, {Role: "data", Size: 100 << 30}},
	})
	if err != nil {
		log.Fatal(err)
	}
	op := *out.Operation
	for !op.Final() {
		if op, err = c.OperationWait(ctx, op.ID, time.Minute); err != nil {
			log.Fatal(err)
		}
	}
	if op.Error != nil {
		log.Fatal(op.Error.Err())
	}
	web1, err := c.Instance(ctx, op.Subject.ID)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range web1.Disks {
		fmt.Println(d.Name, d.Size, d.Path)
	}
}
