mkdir -p dist
cp src/* dist/
