module.exports = ({ req, res, log }) => {
    log('Sample Log');
    return res.json(
        {
            isTest: true,
            message: 'Hello Open Runtimes 👋',
            url: req.url,
            variable: process.env.TEST_VARIABLE ?? '',
            todo: { userId: 13 },
            bytes: req.bodyText.length,
        },
        200,
        { 'x-key': 'aValue', 'set-cookie': ['a=1', 'b=2'] },
    );
};
