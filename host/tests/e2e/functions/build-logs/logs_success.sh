bash logs.sh 1
