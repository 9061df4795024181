bash logs.sh 2
