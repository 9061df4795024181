bash logs.sh 2
exit 1
