#!/bin/bash
# Makes a repository of one module in /tmp/repository, as a module proxy has them.
set -euo pipefail
versions=/tmp/repository/example.org/greeting/@v
mkdir -p "$versions"
cd "$(mktemp -d)"
cat > zip.go << 'END'
package main

import (
	"archive/zip"
	"os"
)

func main() {
	archive := zip.NewWriter(os.Stdout)
	for name, text := range map[string]string{
		"go.mod":      "module example.org/greeting\n",
		"greeting.go": "package greeting\n\nconst Text = \"Greetings!\"\n",
	} {
		file, _ := archive.Create("example.org/greeting@v1.0.0/" + name)
		file.Write([]byte(text))
	}
	archive.Close()
}
END
go run zip.go > "$versions/v1.0.0.zip"
echo 'module example.org/greeting' > "$versions/v1.0.0.mod"
echo '{"Version":"v1.0.0","Time":"2026-01-01T00:00:00Z"}' > "$versions/v1.0.0.info"
echo v1.0.0 > "$versions/list"
