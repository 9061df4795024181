bash logs.sh 1
exit 1
