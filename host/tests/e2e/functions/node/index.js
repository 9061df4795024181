const fetch = require('node-fetch');

// TODO_URL takes the place of a service on the Internet.
const todos = process.env.TODO_URL ?? 'https://dummyjson.com/todos';

module.exports = async ({ req, res, log }) => {
    const id = req.bodyText ? JSON.parse(req.bodyText).id ?? 1 : 1;
    const todo = await fetch(`${todos}/${id}`).then((answer) => answer.json(), () => null);
    log('Sample Log');
    return res.json({
        isTest: true,
        message: 'Hello Open Runtimes 👋',
        url: req.url,
        variable: process.env.TEST_VARIABLE,
        todo,
    });
};
