#!/bin/sh
# Makes the hub's certificate for docker/compose.yaml, once: an authority that signs it and is thrown away, and a certificate for the name
# `hub`. Run in the image, with the volume that keeps it on /data.
set -eu
cd /data
if [ -s hub.pem ] && openssl x509 -in hub.pem -noout -checkend 2592000 >/dev/null; then
    echo "the certificate is there"
    exit 0
fi
umask 077
curve="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086
openssl req -x509 $curve -days 3650 -subj "/CN=FetchBox hub authority" -keyout authority.key -out authority.pem 2>/dev/null
# shellcheck disable=SC2086
openssl req $curve -subj "/CN=hub" -keyout hub.key.new -out hub.csr 2>/dev/null
echo "subjectAltName=DNS:hub" >extensions
openssl x509 -req -in hub.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 3650 -extfile extensions -out hub.pem.new 2>/dev/null
rm -f authority.key authority.srl hub.csr extensions
mv authority.pem ca.pem
mv hub.key.new hub.key
mv hub.pem.new hub.pem
echo "a certificate was made"
