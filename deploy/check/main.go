// Reads docker-compose.yml as `docker compose` does, and the Kubernetes example as its API server would: unknown fields and
// wrong types are errors. Run by scripts/check-deploy, from the repository's root: go run -C deploy/check . "$PWD"
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// The kinds that the example has; another one is an error until it is added here.
var kinds = map[string]func() any{
	"v1/ConfigMap":                            func() any { return &core.ConfigMap{} },
	"v1/PersistentVolumeClaim":                func() any { return &core.PersistentVolumeClaim{} },
	"v1/Service":                              func() any { return &core.Service{} },
	"apps/v1/Deployment":                      func() any { return &apps.Deployment{} },
	"monitoring.coreos.com/v1/ServiceMonitor": func() any { return &monitoring.ServiceMonitor{} },
}

func compose(root string) error {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithWorkingDirectory(root), cli.WithProfiles([]string{"*"}), cli.WithInterpolation(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	for name, service := range project.Services {
		if service.Restart != "" && service.HealthCheck == nil {
			return fmt.Errorf("service %s: it is to stay up and has no health check", name)
		}
		for _, volume := range service.Volumes {
			if _, err := os.Stat(volume.Source); volume.Type == "bind" && err != nil {
				return fmt.Errorf("service %s: %w", name, err)
			}
		}
		if service.Build != nil {
			if _, err := os.Stat(filepath.Join(service.Build.Context, service.Build.Dockerfile)); err != nil {
				return fmt.Errorf("service %s: %w", name, err)
			}
		}
	}
	fmt.Printf("docker-compose.yml: %d services, %d volumes\n", len(project.Services), len(project.Volumes))
	return nil
}

func manifest(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := k8syaml.NewDocumentDecoder(file)
	defer reader.Close()
	buffer, count := make([]byte, 1<<20), 0
	for {
		n, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			fmt.Printf("%s: %d objects\n", path, count)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		var kind meta.TypeMeta
		if err := yaml.Unmarshal(buffer[:n], &kind); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		name := kind.APIVersion + "/" + kind.Kind
		object, known := kinds[name]
		if !known {
			return fmt.Errorf("%s: %s is not a kind that deploy/check knows", path, name)
		}
		if err := yaml.UnmarshalStrict(buffer[:n], object()); err != nil {
			return fmt.Errorf("%s: %s: %w", path, name, err)
		}
		count++
	}
}

func main() {
	root := os.Args[1]
	manifests, err := filepath.Glob(filepath.Join(root, "deploy/kubernetes/*.yml"))
	if err == nil {
		err = compose(root)
	}
	for _, path := range manifests {
		if err == nil {
			err = manifest(path)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(1)
	}
}
